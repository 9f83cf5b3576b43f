"""The benchmark of the default method: it runs, its cells are not computed twice, and its page shows what it measured."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "default_method.py"))
MEASURED = json.loads((ROOT / "benchmarks" / "results" / "default_method.json").read_text())["cells"]


@pytest.mark.parametrize("task", list(dict.fromkeys(cell["task"] for cell in MEASURED)))
def test_the_page_has_the_tables_of_the_stored_figures(task):
    page = (ROOT / "docs" / "methods_measured.md").read_text(encoding="utf-8")
    assert "\n".join(BENCHMARK["table"]([cell for cell in MEASURED if cell["task"] == task])) in page


def test_spread_by_hand():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    # Outputs 3, 1, 0, 0: mean 1, variance 1.5. Inputs 2, 1, 1, 0: mean 1, variance 0.5.
    expected = {"outputs": 1.5**0.5, "inputs": 0.5**0.5, "empty": 0.5}
    assert BENCHMARK["spread"](mask) == pytest.approx(expected)
    assert BENCHMARK["spread"](mask[:, :, None, None].expand(4, 4, 3, 3)) == pytest.approx(expected)


def test_a_stored_cell_is_not_computed_again(tmp_path, monkeypatch, capsys):
    stored = [{**MEASURED[1], "task": "digits", "row": "gmp", "sparsity": 0.9, "seed": 3}]
    path = tmp_path / "cells.json"
    path.write_bytes(BENCHMARK["encoded"](stored))
    cell = stored[0]
    words = [
        "digits",
        "--rows",
        "gmp",
        "--sparsities",
        str(cell["sparsity"]),
        "--seeds",
        str(cell["seed"]),
        "--json",
        str(path),
    ]
    monkeypatch.setattr(sys, "argv", ["default_method.py", *words])
    before = path.read_bytes()
    assert BENCHMARK["main"]() == 0 and path.read_bytes() == before
    assert f"{100 * MEASURED[1]['accuracy']:.2f}" in capsys.readouterr().out
