"""The paired bootstrap: figures of drawn samples against those of the task itself, and intervals against a formula and real models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes

from sparsify.figures.bootstrap import bootstrap_difference, of_rows, r2, share
from sparsify.figures.intervals import paired_shares
from sparsify.parts.trees import mapped
from sparsify.tasks import Binary, Custom, Dense, Multilabel, Regression, Sequence

G = torch.Generator().manual_seed(0)
Z = torch.randn(40, 3, 4, generator=G)
CASES = {
    "number": (Regression(), Z[:, 0, :1], Z[:, 0, 0] + 0.5 * Z[:, 0, 1]),
    "numbers": (Regression(), Z[:, :, 0], 100 + Z[:, :, 0] + Z[:, :, 1]),
    "binary": (Binary(), (4 * Z[:, 0, 0]).round(), Z[:, 0, 1] + Z[:, 0, 0] > 0.5),  # with ties
    "multilabel": (Multilabel(), Z[:, :, 0], (Z[:, :, 0] + Z[:, :, 1] > 0.8).long()),
    "dense": (Dense(ignore=9), Z, (Z + 0.7 * Z.flip(1)).argmax(1)),
    "sequence": (Sequence(ignore=9), Z, (Z + 0.7 * Z.flip(2)).argmax(2)),
    "custom": (
        Custom(criterion=lambda output, target: (output["mean"] - target).abs().median()),
        {"mean": Z[:, 0, 0], "more": [Z]},
        Z[:, 0, 1],
    ),
}
for name in ("dense", "sequence"):
    CASES[name][2][:13, 1] = 9


@pytest.mark.parametrize("name", CASES)
def test_drawn_samples_have_the_figure_that_the_task_gives_them(name):
    task, output, target = CASES[name]
    figure = task.resampled(output, target)
    assert figure is not None
    rows = [torch.arange(40), *torch.randint(40, (5, 40), generator=G)]
    draws = torch.stack([torch.bincount(some, minlength=40) for some in rows]).double().numpy()
    drawn = [tuple(mapped(lambda x, some=some: x[some], tree) for tree in (output, target)) for some in rows]
    wanted = [next(iter(task.figures(*pair).values())) for pair in drawn]
    assert figure(draws).tolist() == pytest.approx(wanted, abs=1e-9)


def test_a_difference_of_shares_has_the_interval_of_its_formula():
    lost, gained = torch.zeros(800), torch.zeros(800)
    lost[:60], gained[60:100] = 1, 1
    ones, first = torch.ones(800).double(), (1 - gained).double()
    low, high = bootstrap_difference(share((1 - lost).double(), ones), share(first, ones), 800)
    difference, wanted = paired_shares(60, 40, 800)
    assert (low, high) == pytest.approx(wanted, abs=0.003)
    assert low < difference < high
    assert (low, high) == bootstrap_difference(share((1 - lost).double(), ones), share(first, ones), 800)


def test_what_no_draw_defines_has_no_interval():
    nothing = share(torch.zeros(5).double(), torch.zeros(5).double())
    assert bootstrap_difference(nothing, nothing, 5, resamples=20) is None


def test_two_models_of_real_data_are_told_apart_and_a_model_is_not_told_from_itself():
    found = load_diabetes()
    x, y = torch.tensor(found.data * 20), torch.tensor(found.target)
    ones = torch.ones(len(y), 1, dtype=torch.float64)
    predicted = {}
    for name, columns in (("all", slice(None)), ("age", slice(0, 1)), ("others", slice(1, None))):
        inputs = torch.cat([x[:, columns], ones], 1)
        predicted[name] = inputs[221:] @ torch.linalg.lstsq(inputs[:221], y[:221, None]).solution[:, 0]
    figures = {name: r2(values, y[221:]) for name, values in predicted.items()}
    low, high = bootstrap_difference(figures["all"], figures["age"], 221)
    assert 0.3 < low < high < 0.7
    low, high = bootstrap_difference(figures["all"], figures["others"], 221)  # age alone tells nothing more
    assert -0.02 < low <= 0 <= high < 0.02
    assert bootstrap_difference(figures["all"], figures["all"], 221) == (0.0, 0.0)


def test_a_function_of_rows_gives_the_interval_of_the_same_figure_in_closed_form():
    output, target = Z[:, :, 0].double(), (Z[:, :, 0] + Z[:, :, 1]).double()
    known = r2(output, target), r2(0.5 * output, target)
    again = [
        of_rows(lambda rows, o=o: Regression().figures(o[rows], target[rows])["r2"]) for o in (output, 0.5 * output)
    ]
    wanted = bootstrap_difference(*known, 40, resamples=50)
    assert bootstrap_difference(*again, 40, resamples=50) == pytest.approx(wanted)


def test_a_draw_on_which_a_function_fails_defines_nothing():
    def needs_the_first(rows):
        if 0 not in rows:
            raise ValueError("the first is missing")
        return 1.0

    found = of_rows(needs_the_first)(np.array([[1.0, 1.0], [0.0, 2.0]]))
    assert found[0] == 1 and math.isnan(found[1])


def test_outputs_that_are_no_rows_of_samples_are_not_drawn():
    task = Custom(criterion=lambda output, target: output[0].sum())
    assert task.resampled((Z, torch.tensor(1.0)), Z) is None and task.resampled((Z, Z[:3]), Z) is None
