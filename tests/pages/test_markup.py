"""Markup: text stays text wherever it stands on a page, a line break in a cell stays one, and the templates are installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from sparsify.pages import markup
from sparsify.pages.markup import Table

ROOT = Path(__file__).parents[2]
HOSTILE = """<script>alert(1)</script><img src=x onerror='alert(2)'>"&{{ 7 * 7 }}{% raw %}</pre></table>"""


def shown(table: Table) -> str:
    template = markup._templates().from_string('{% from "parts.html" import table %}{{ table(found) }}')
    return template.render(found=table)


def test_a_table_of_text():
    assert shown(Table(("a", "<b>"), [("1 & 2", "x\ny")], kind="text")) == (
        '<div class="wide text"><table><thead><tr><th scope="col">a</th><th scope="col">&lt;b&gt;</th></tr></thead>'
        "<tbody><tr><td>1 &amp; 2</td><td>x<br>y</td></tr></tbody></table></div>"
    )
    assert "<thead>" not in shown(Table(("", ""), [("a", "b")]))


def everything(text: str, plot: str) -> dict[str, object]:
    """Every value of the pages of a run and a grid, the same text in each, and the same plot."""
    table = Table((text, text), [(text, text)], kind="text")
    tables = ("headline", "compute", "schedule", "calibration", "layers", "parity", "facts", "passes")
    ood, int8 = {"plot": plot, "figures": table}, {"figures": table, "layers": table, "trials": table}
    sets = {"figures": table, "sizes": table, "classes": table, "folded": True}
    classes = {
        "reliability": plot, "calibration": table, "bins": table, "ood": ood, "selective": ood, "sets": sets, "unknown": plot,
        "shift": {**ood, "words": text},
        "shown": table, "every": table,
    }  # fmt: skip
    exemplar = dict.fromkeys(("sample", "picture", "label", "dense", "sparse", "fall"), text)
    damage = {
        "sentences": [text], "shown": table, "every": table, "told": text, "exemplars": [exemplar], "pictured": True, "listed": table,
    }  # fmt: skip
    return {
        "damage": damage, "spikes": {"work": table, "layers": table}, "populations": table, "of_populations": text,
        **dict.fromkeys(tables, table), **dict.fromkeys(("figures", "missing_cells", "reaches", "cells"), table),
        **dict.fromkeys(("title", "model", "data", "coverage", "recipe", "program", "name", "reading", "trust", "reaching"), text),
        **dict.fromkeys(("curves", "readings", "densities", "masks", "by_sparsity", "by_step", "by_evaluations"), plot),
        "verdict": [text], "sentences": [text], "clear": [text], "usage": {text: text}, "classes": classes, "int8": int8,
        "missing": [{"file": text, "reason": text, "advice": text}], "savings": {"sentences": [text], "macs": table, "bytes": table},
    }  # fmt: skip


@pytest.mark.parametrize("template", ["report.html", "grid.html", "evaluation.html"])
def test_hostile_text_is_escaped_wherever_it_stands(template):
    content = everything(HOSTILE, Markup("<svg></svg>"))
    if template == "grid.html":
        content["missing"] = content["cells"]
    if template == "evaluation.html":
        table, shown = content["figures"], content["classes"]
        assert isinstance(shown, dict)
        content |= {"classes": table, "differences": table, "sets": table, "folded": True, "verdicts": [HOSTILE]}
        content |= {key: shown[key] for key in ("reliability", "selective", "ood")}
        content |= {"shift": {**shown["ood"], "words": HOSTILE}}
    page = markup.page(template, **content)
    assert "<script" not in page and "<img src=x" not in page and "49" not in page and "onerror='" not in page
    assert page.count("<img") == page.count('src="data:image/png;base64,') == (template == "report.html")
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20 and "{{ 7 * 7 }}" in page
    tags = {*re.findall(r"<(\w+)", page)}
    assert tags <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "div", "table", "thead", "tbody", "tr", "th",
        "td", "svg", "details", "summary", "pre", "h3", "figure", "figcaption", "img", "br",
    }  # fmt: skip
    assert page.count("</pre>") == len(re.findall(r"<pre", page)) and page.count("</table>") == page.count("<table")


def test_only_markup_goes_in_as_it_is():
    assert "&lt;svg&gt;" in markup.page("report.html", **everything("a", "<svg>"))


def test_a_value_that_a_page_lacks_is_an_error():
    with pytest.raises(UndefinedError, match="'model' is undefined"):
        markup.page("report.html", title="a")


def test_the_templates_are_installed_with_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["sparsify"]
    files = [*(ROOT / "sparsify").rglob("*.html")]
    assert files and all(
        any(path.relative_to(ROOT / "sparsify").match(pattern) for pattern in patterns) for path in files
    )
