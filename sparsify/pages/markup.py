"""Self-contained pages from templates, and the tables in them. A template escapes all text; only `markupsafe.Markup` goes in as it is."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Table:
    """A table of plain text.

    Attributes:
        head: a title per column; all empty: no titles.
        rows: cells by row; a line break within a cell stays one.
        kind: a class of the page's style: ``text`` aligns to the left.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: str = ""


def page(template: str, **content: Any) -> str:
    """One HTML file without links to anything.

    Args:
        template: a file of `sparsify/pages/templates`.
        content: what it shows, by name: texts, which are escaped; tables; plots, which are `Markup`.
    """
    return _templates().get_template(template).render(content)


@functools.cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("sparsify.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["broken"] = _broken
    return found


def _broken(text: str) -> Markup:
    """Plain text as markup, with its line breaks."""
    return Markup("<br>").join(text.split("\n"))
