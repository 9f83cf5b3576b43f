"""A grid's page and its Markdown: whole, self-contained, with every row, and what is missing."""

from __future__ import annotations

import re

import pytest

from sparsify.reports.summary import CellResult, summarise
from sparsify.reports.summary_page import document, markdown
from tests.reports.test_document import Page


def cells(*, masked=True, seeds=(0, 1, 2)):
    found = []
    for name, base in (("dense", None), ("rigl", "dense"), ("cigl(rigl)", "rigl")):
        for sparsity in (0.9, 0.98) if base and masked else (None,):
            for seed in seeds:
                history = [
                    {
                        "step": 10 * i,
                        "evaluations": 12.0 * i,
                        "val_accuracy": 0.9 - 1 / (i + seed + 2),
                        "val_loss": 1 / i,
                    }
                    for i in range(1, 7)
                ]
                score = 0.9 + 0.01 * seed - (sparsity or 0.9) ** 9 / 10
                kept = {
                    "accuracy": score,
                    "ece_after": 0.1 * score,
                    "auroc.svhn": score / 2,
                    "evaluations": 60.0,
                    "steps": 60.0,
                }
                found.append(CellResult(name, (base,) if base else (), sparsity, seed, kept, history))
    return found


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "dense alone"])
@pytest.mark.parametrize("seeds", [(0, 1, 2), (0,)], ids=["three seeds", "one seed"])
def test_the_page_is_whole_and_refers_to_nothing_outside(masked, seeds):
    results = cells(masked=masked, seeds=seeds)
    text = document("a < b", summarise(results), results, [("rigl 0.99 seed 0", "too <sparse>")], "epochs = 2\n")
    page = Page(text)
    assert page.open == [] and page.links == [] and len(page.ids) == len(set(page.ids))
    assert "<script" not in text and not re.search(r"url\((?!#)", text)
    assert text.count("<svg") == 3 and text.count("aria-label=") == 3
    assert {used for used in re.findall(r"url\(#([^)]*)\)", text)} <= set(page.ids)
    words = " ".join(page.words)
    for expected in (
        "a < b",
        "too <sparse>",
        "cigl(rigl)",
        "AUROC svhn",
        "epochs = 2",
        "a forward and a backward pass each",
    ):
        assert expected in words, expected
    shown = summarise(results).table(summarise(results).shown())
    assert page.cells[: 1 + len(shown.columns)] == ["method", *shown.columns]


def test_the_page_is_made_the_same_twice():
    results = cells()
    one, two = (document("t", summarise(results), results, [], "") for _ in range(2))
    assert one == two and "Not in the table" not in one


def test_markdown_has_a_line_a_row():
    results = cells()
    text = markdown("a grid", summarise(results), [("set 0.9 seed 0", "no file")])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    columns = lines[0].count("|")
    table = lines[: lines.index(next(line for line in lines if "reached" in line))]
    assert len(table) == 2 + 5 and all(line.count("|") == columns for line in table)
    assert "<br>" in table[3] and "- set 0.9 seed 0: no file" in text
