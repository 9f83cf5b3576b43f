"""Grids of tasks other than classification: their figures are compared, each in its own direction."""

from __future__ import annotations

import pytest

from sparsify.reports.summary import ONE_SEED, UNDIRECTED, CellResult, summarise
from sparsify.reports.summary_measures import figures, measure
from sparsify.reports.summary_plots import _way, against_steps


def model(own, r2=None, lower=("rmse",)):
    found = {"r2": r2, "rmse": 0.5} if r2 is not None else own
    row = {"figures": found, "headline": next(iter(found)), "lower_is_better": list(lower), "density": 0.1}
    return {
        **row,
        "interval": {"coverage": 0.91, "width": 2.0},
        "counts": {"steps": 10, "forwards": 10, "backwards": 10},
    }


def test_figures_stand_under_their_names_and_own_ones_under_their_direction():
    found = figures(model({}, 0.8))
    assert found["r2"] == 0.8 and found["rmse"] == 0.5 and found["interval.coverage"] == 0.91
    assert measure("r2").better == 1 and measure("rmse").better == -1
    found = figures(model({"within": 0.7, "bias": 0.1, "none": None}, lower=("bias",)))
    assert found["higher.within"] == 0.7 and found["lower.bias"] == 0.1 and "higher.none" not in found
    assert (measure("lower.bias").label, measure("lower.bias").better) == ("bias", -1)
    assert measure("higher.within").better == 1


def cells(key="val_r2"):
    return [
        CellResult(name, ("gmp",) if name == "rigl" else (), 0.9, seed, figures(model({}, value + 0.01 * seed)), rows)
        for name, value in (("gmp", 0.7), ("rigl", 0.8))
        for seed in (0, 1)
        for rows in [[{"step": s, "val_loss": 1 / s / value, key: value * s / 4} for s in (1, 2, 3, 4)]]
    ]


def test_a_grid_of_regressions_is_summarised():
    found = summarise(cells())
    rigl = found.rows[1]
    assert rigl.name == "rigl" and rigl.differences["r2"].mean == pytest.approx(0.1)
    assert rigl.reach is not None and rigl.reach.reached == 2  # by the loss
    assert {"r2", "rmse", "interval.coverage"} <= {*found.shortlist()}
    assert "R2" in found.brief().columns


def test_curves_show_the_headline_figure():
    assert "Validation r2 and loss by step" in against_steps(cells())
    assert "Validation accuracy and NLL by step" in against_steps(cells("val_accuracy"))


def undirected(value):
    found = {"mse": value, "accuracy": value, "coverage": 0.5}
    row = {"figures": found, "headline": "mse", "lower_is_better": [], "undirected": [*found]}
    return figures({**row, "counts": {"steps": 10, "forwards": 10, "backwards": 10}})


def test_figures_of_no_known_direction_are_never_better_or_worse():
    assert undirected(0.3)["own.mse"] == undirected(0.3)["own.accuracy"] == 0.3
    assert {"mse", "accuracy", "coverage"}.isdisjoint(undirected(0.3))
    assert measure("own.accuracy").better == 0 and measure("own.mean_gap").label == "mean gap"
    rows = [{"step": s, "val_loss": 1 / s, "val_mse": 1 / s} for s in range(1, 12)]
    grid = [
        CellResult(name, ("gmp",) if name == "rigl" else (), 0.9, seed, undirected(value + 0.001 * seed * value), rows)
        for name, value in (("gmp", 0.7), ("rigl", 0.8))
        for seed in (0, 1, 2)
    ]
    found = summarise(grid)
    told = found.to_dict()["rows"][1]["figures"]["own.mse"]["difference"]
    assert told["verdict"] == "higher" and told["mean"] == pytest.approx(0.1, abs=1e-3)
    assert found.sentences() == [UNDIRECTED] and summarise(grid[::3]).sentences() == [ONE_SEED]
    shown = str(found.brief().rows) + str(found.table(found.shown()).rows)
    assert "+0.100" in shown and "better" not in shown and "worse" not in shown
    assert _way(grid, "val_mse") == 0 and _way(grid, "val_loss") == -1 and _way(cells(), "val_r2") == 1
    own = [CellResult("gmp", (), 0.9, 0, figures(model({"mse": 0.1}, lower=("mse",))), rows)]
    assert _way(own, "val_mse") == -1
