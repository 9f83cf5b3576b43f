"""Plots of a grid: every row is drawn, at the height and place of its figures."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

import sparsify.reports.summary_plots as summary_plots
from sparsify.reports.summary import summarise
from sparsify.reports.summary_plots import against_evaluations, against_sparsity, against_steps, looks
from tests.reports.test_summary_page import cells


@pytest.fixture
def figure(monkeypatch) -> list[Figure]:
    drawn: list[Figure] = []
    monkeypatch.setattr(summary_plots, "svg", lambda figure, label, prefix: drawn.append(figure) or "")
    return drawn


def test_every_method_has_a_look_of_its_own():
    names = ["dense", *(f"m{i}" for i in range(20))]
    found = [tuple(sorted(look.items())) for look in looks(names).values()]
    assert len(set(found)) == len(names)


def test_means_by_sparsity(figure):
    summary = summarise(cells())
    against_sparsity(summary)
    axes = {axis.get_ylabel(): axis for axis in figure[0].axes}
    assert set(axes) - {""} == {"accuracy", "ECE after", "AUROC svhn"}  # evaluations are the same everywhere
    heights = {row.spreads["accuracy"].mean for row in summary.rows}
    drawn = {float(y) for line in axes["accuracy"].lines for y in line.get_ydata()}
    assert heights <= drawn
    assert [label.get_text() for label in axes["accuracy"].get_xticklabels()] == ["0.9", "0.98"]


@pytest.mark.parametrize(("plot", "last"), [(against_steps, 60), (against_evaluations, 72)])
def test_curves_end_where_training_did(figure, plot, last):
    results = cells()
    plot(results)
    panels = [axis for axis in figure[0].axes if axis.get_ylabel() == "validation accuracy"]
    assert [axis.get_title() for axis in panels] == ["sparsity 0.9", "sparsity 0.98"]
    for axis in panels:
        assert [line.get_label() for line in axis.lines] == ["dense", "rigl", "cigl(rigl)"]
        assert all(line.get_xdata()[-1] == last for line in axis.lines)
        ends = [sum(c.history[-1]["val_accuracy"] for c in results if c.name == "dense") / 3]
        assert axis.lines[0].get_ydata()[-1] == pytest.approx(ends[0])
