"""The tables that the command prints."""

from __future__ import annotations

import io
import re

import pytest
import torch
from rich.console import Console
from torch import nn

import sparsify as sp
from sparsify.heads import HEADS
from sparsify.methods.registry import METHODS, WRAPPERS
from sparsify.parts.allocation import ALLOCATIONS
from sparsify.parts.patterns import PATTERNS, Spelling, Unstructured
from sparsify.passes import PASSES, Pipeline
from sparsify.reports.headline import Headline
from sparsify.reports.summary import CellResult, summarise
from sparsify.tasks import TASKS
from sparsify.terminal import tables
from tests.cases import case


def shown(table, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(table, crop=False, soft_wrap=True)
    return console.file.getvalue()


def test_long_names_of_weights_stay_whole():
    found = case("mlp")
    wrapped = nn.Sequential()
    wrapped.add_module("a_block_with_a_name_as_long_as_those_of_language_models_are", found.build())
    text = shown(tables.weights(sp.trace(wrapped, found.args)))
    assert "a_block_with_a_name_as_long_as_those_of_language_models_are.1.weight │ linear │ 32 x 64" in text


def test_a_trace_says_how_much_of_the_model_may_become_sparse():
    model = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(12, 5))
    program = sp.trace(model, (torch.zeros(2, 3, dtype=torch.long),))
    assert tables.whole(program).splitlines() == [
        "60 of all 265 weights get masks by default.",
        "Only 60 of the model's 265 weights can be masked; the others stay dense, the largest of them 0.weight (200 weights: an "
        "embedding table).",
    ]
    masked = Pipeline.parse("insert-masks{density=0.5}")(program)
    assert "60 of all 265 weights have masks; 88.7 % of all are active." in tables.whole(masked)


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (tables.methods, METHODS), (tables.passes, PASSES), (tables.tasks, TASKS), (tables.patterns, PATTERNS),
        (tables.heads, [head.spec for head in HEADS.values()]),
        (tables.allocations, ALLOCATIONS),
    ],
)  # fmt: skip
def test_everything_registered_is_listed(table, names):
    text = shown(table(), width=200)
    assert all(f"│ {name} " in text for name in names)
    if names is METHODS:
        assert all(f"│ {name}(...) " in text for name in WRAPPERS)


def test_a_registered_pattern_and_allocation_are_listed_with_what_they_do_and_who_brought_them(monkeypatch):
    def halves(layers, density):
        """Half of every weight."""
        return {name: layer.size // 2 for name, layer in layers.items()}

    with PATTERNS.forgetting(), ALLOCATIONS.forgetting():
        monkeypatch.setattr("sparsify.registry._loading", ["mine"])  # as while a plug-in of that package registers
        PATTERNS.register("row", Spelling(re.compile(r"row"), lambda found: Unstructured(), {"row": "whole rows"}))
        ALLOCATIONS.register("halves", halves)
        listed = [re.sub(r" +", " ", shown(table(), width=200)) for table in (tables.patterns, tables.allocations)]
    assert "│ row │ whole rows (from mine) │" in listed[0]
    assert "│ halves │ Half of every weight. (from mine) │" in listed[1]


def test_the_table_of_a_grid_fits_80_columns():
    figures = {"accuracy": 0.9, "nll_after": 0.2, "ece_before": 0.1, "ece_after": 0.05, "rounds": 10.0}
    rows = (("dense", None, None), ("agent(rigl)", "dense", 0.95))
    cells = [
        CellResult(
            name,
            (base,) if base else (),
            sparsity,
            seed,
            {k: v + 0.01 * seed * (base is None) for k, v in figures.items()},
            [],
        )
        for name, base, sparsity in rows
        for seed in (0, 1, 2)
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(tables.comparison(summarise(cells)))
    text = console.file.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "0.910 ± 0.010" in text and "-0.010" in text and "…" not in text


def test_a_comparison_of_files_loses_nothing_in_80_columns():
    names = ("ms (quartiles)", "times as fast (95 %)", "verdict", "bytes", "non-zeros")
    cells = (
        "2.190 (2.135 to 2.281)",
        "6.50 (6.17 to 6.63)",
        "no difference beyond noise",
        "9,632,735",
        "213,291 of 217,387",
    )
    console = Console(file=io.StringIO(), width=80)
    console.print(tables.figures("file", Headline(names, (("runs/wide/dense.onnx", cells),))))
    text = console.file.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines()) and "…" not in text
    written = sorted(char for char in text if char not in " ─\n")
    assert written == sorted("".join(["file", "runs/wide/dense.onnx", *names, *cells]).replace(" ", ""))
