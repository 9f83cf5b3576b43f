"""Figures of draws agree with the figures of the drawn samples."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.figures import metrics, regression, resampled, selective
from sparsify.figures.bootstrap import bootstrap_difference, bootstrap_interval, measured
from sparsify.figures.sets import accepted_figures, set_figures
from sparsify.figures.softmax import softmax

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 200)
TABLE = softmax(RNG.normal(size=(200, 4)) + 1.5 * np.eye(4)[LABELS])
ROWS = [np.arange(200), *RNG.integers(0, 200, size=(4, 200))]
DRAWS = np.stack([np.bincount(rows, minlength=200) for rows in ROWS]).astype(float)


def test_figures_of_probabilities():
    found = {name: figure(DRAWS) for name, figure in resampled.of_table(TABLE, LABELS).items()}
    for k, rows in enumerate(ROWS):
        p, y = TABLE[rows], LABELS[rows]
        curve = selective.risk_coverage(*metrics.top_label(p, y))
        wanted = {
            "accuracy": metrics.accuracy(p, y), "nll": metrics.nll(p, y), "brier": metrics.brier(p, y),
            "signed_gap": metrics.signed_gap(p, y), "aurc": selective.aurc(curve),
            "correctness_auroc": selective.correctness_auroc(*metrics.top_label(p, y)),
        }  # fmt: skip
        assert {name: values[k] for name, values in found.items()} == pytest.approx(wanted, abs=1e-12)


def test_few_wrong_answers_leave_out_what_ranks_them():
    labels = TABLE.argmax(1)
    labels[:19] = (labels[:19] + 1) % 4
    assert set(resampled.of_table(TABLE, labels)) == {"accuracy", "nll", "brier", "signed_gap"}


def test_figures_of_sets_and_accepted_answers():
    sets, accept, right = TABLE > 0.2, TABLE.max(1) > 0.6, TABLE.argmax(1) == LABELS
    found = resampled.of_sets(sets, LABELS) | resampled.of_accepted(accept, right)
    for k, rows in enumerate(ROWS):
        one, two = set_figures(sets[rows], LABELS[rows]), accepted_figures(accept[rows], right[rows])
        wanted = [one["coverage"], one["mean_size"], two["coverage"], two["risk"]]
        assert [figure(DRAWS)[k] for figure in found.values()] == pytest.approx(wanted)


def test_figures_of_numbers_and_intervals():
    target = RNG.normal(size=(200, 2))
    prediction = target + 0.5 * RNG.normal(size=(200, 2))
    found = resampled.of_numbers(prediction, target)
    ends = resampled.of_intervals(target, prediction - 0.5, prediction + 0.7)
    for k, rows in enumerate(ROWS):
        assert {name: figure(DRAWS)[k] for name, figure in found.items()} == pytest.approx(
            regression.errors(prediction[rows], target[rows])
        )
        held = regression.coverage(target[rows], prediction[rows] - 0.5, prediction[rows] + 0.7)
        assert [figure(DRAWS)[k] for figure in ends.values()] == pytest.approx([held, 1.2])


def test_two_parts_are_drawn_each_from_itself():
    inside, outside = RNG.normal(1, 1, 80), RNG.normal(0, 1, 50)
    figure = resampled.of_scores(inside, outside)
    assert measured(figure, [80, 50]) == pytest.approx(metrics.auroc(inside, outside))
    low, high = bootstrap_interval(figure, [80, 50], resamples=200)
    assert 0.5 < low < metrics.auroc(inside, outside) < high < 1
    seen = []
    bootstrap_interval(lambda draws: seen.append(draws) or draws[:, 0], [80, 50], resamples=3)
    assert {(row[:80].sum(), row[80:].sum()) for row in np.concatenate(seen)} == {(80, 50)}
    assert bootstrap_difference(figure, figure, [80, 50], resamples=20) == (0.0, 0.0)


def test_the_interval_of_a_mean_is_that_of_its_formula():
    values = RNG.exponential(size=2000)
    low, high = bootstrap_interval(resampled.mean(values), 2000)
    reach = 1.96 * values.std() / 2000**0.5
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=reach / 5)
