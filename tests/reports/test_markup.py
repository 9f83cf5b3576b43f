"""Markup: text stays text, a line break in a cell stays one."""

from __future__ import annotations

from sparsify.reports import markup


def test_a_table_of_text():
    found = markup.table(("a", "<b>"), [("1 & 2", "x\ny")], kind="text")
    assert found == (
        '<div class="wide text"><table><thead><tr><th scope="col">a</th><th scope="col">&lt;b&gt;</th></tr></thead>'
        "<tbody><tr><td>1 &amp; 2</td><td>x<br>y</td></tr></tbody></table></div>"
    )
    assert "<thead>" not in markup.table(("", ""), [("a", "b")])


def test_a_page_leaves_empty_sections_out():
    text = markup.page("<t>", ["<p>one</p>", "", markup.folded("two", markup.wide("x"))])
    assert "<title>&lt;t&gt;</title>" in text and "<p>one</p>\n<details><summary>two</summary>" in text
