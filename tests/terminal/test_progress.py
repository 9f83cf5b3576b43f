"""What the command shows while it works: bars, and a line for every cell that ended."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import sparsify.terminal.progress as progress
from sparsify.runs.grid import Cell
from sparsify.runs.recipe import Recipe

CELLS = [Cell("rigl", "dense", 0.9, seed, Recipe(seed=seed)) for seed in (0, 1, 2)]


@pytest.fixture
def written(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=text, width=200))
    return text


def test_a_line_for_every_cell_that_ended(written):
    with progress.grid_bars(3) as (on_event, on_decode):
        on_decode(5, 10)
        on_event("found", CELLS[0], {})
        for cell in CELLS[1:]:
            on_event("started", cell, {})
            on_event("step", cell, {"step": 1, "total": 9, "loss": 2.0, "accuracy": 0.5, "density": 0.25})
        on_event("finished", CELLS[1], {"accuracy": 0.9, "ece_after": 0.01})
        on_event("failed", CELLS[2], {"error": "no [data] here"})
    lines = written.getvalue().splitlines()
    assert "2 of 3: rigl 0.9 seed 1, accuracy 0.9000, ECE 0.0100 calibrated" in lines
    assert "3 of 3: rigl 0.9 seed 2 failed: no [data] here" in lines
    assert not any(line.startswith("1 of 3") for line in lines)


def test_a_run_shows_its_models(written):
    with progress.run_bars() as (on_step, on_decode):
        on_decode(5, 10)
        on_step("model", {"step": 9, "total": 9, "loss": 2.0, "accuracy": 0.5, "density": 0.25})
    assert "loss 2.000 accuracy 0.500 density 0.250" in written.getvalue() and "5 of 10 images" in written.getvalue()
