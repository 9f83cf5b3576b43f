"""The markup of self-contained pages: tables, wide and folded content, and the page around them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; margin: 1rem 0; } .wide svg { display: block; min-width: 34rem; max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child, .text td, .text th { text-align: left; } th { font-weight: 600; } .text td { overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--soft); padding: .8rem; font-size: .8rem; }
summary { cursor: pointer; padding: .3rem 0; } li { margin: .3rem 0; }
"""


def page(title: str, body: Sequence[str]) -> str:
    """One HTML file without links to anything; empty sections are left out."""
    text = "\n".join(section for section in body if section)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n<body>\n{text}\n'
        f"</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table of plain text; a line break within a cell stays one. ``kind`` is a class: ``text`` aligns to the left."""
    lines = ["<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    top = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in head) if any(head) else ""
    thead = f"<thead><tr>{top}</tr></thead>" if top else ""
    return f'<div class="{f"wide {kind}".strip()}"><table>{thead}<tbody>{"".join(lines)}</tbody></table></div>'


def wide(content: str) -> str:
    """Content that scrolls sideways on a narrow screen."""
    return f'<div class="wide">{content}</div>'


def folded(name: str, content: str) -> str:
    """Content behind a title that opens it."""
    return f"<details><summary>{escaped(name)}</summary>{content}</details>"


def escaped(text: str) -> str:
    """Plain text as markup."""
    return html.escape(text)


def _cell(text: str) -> str:
    return escaped(text).replace("\n", "<br>")
