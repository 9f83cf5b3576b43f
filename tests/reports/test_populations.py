"""Answers of the cells of a grid beside dense models: figures per seed, exemplars over seeds, and their table."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.figures.damage import damage
from sparsify.figures.exemplars import class_shifts, exemplars
from sparsify.reports.populations import Answered, beside_dense, population_table, populations
from sparsify.reports.summary import summarise
from sparsify.reports.summary_page import markdown

DRAWS = np.random.default_rng(0)
LABELS = DRAWS.integers(0, 4, 200)
DENSE = [np.where(DRAWS.random(200) < 0.9, LABELS, DRAWS.integers(0, 4, 200)) for _ in range(3)]
SPARSE = [np.where((DRAWS.random(200) < 0.8) & (LABELS != 2), LABELS, DRAWS.integers(0, 4, 200)) for _ in range(3)]


def answered(name, sparsity, seed, answers, fingerprint="a"):
    content = {"fingerprint": fingerprint, "labels": LABELS.tolist()}
    confidence = {"model": np.full(len(LABELS), 0.5).tolist()}
    return Answered(name, sparsity, seed, {**content, "answers": {"model": answers.tolist()}, "confidence": confidence})


CELLS = [
    *(answered("dense", None, seed, values) for seed, values in enumerate(DENSE)),
    *(answered("gmp", 0.9, seed, values) for seed, values in enumerate(SPARSE)),
]


def test_each_cell_is_compared_with_the_dense_model_of_its_seed():
    found = beside_dense(CELLS)
    assert found.keys() == {("gmp", 0.9, seed) for seed in range(3)}
    for seed in range(3):
        row = damage(DENSE[seed], SPARSE[seed], LABELS, 4)
        assert found["gmp", 0.9, seed] == {"churn": row.churn, "max_excess_gap": row.max_excess_gap}
    assert beside_dense(CELLS[3:]) == {}


def test_a_population_by_its_parts():
    (found,) = populations(CELLS)
    expected = exemplars(np.stack(DENSE), np.stack(SPARSE), LABELS)
    assert found.found.rate == expected.rate and found.found.floor == expected.floor == pytest.approx(0.14, abs=0.04)
    assert found.found.between > 2 * found.found.floor
    assert found.shifts == class_shifts(np.stack(DENSE), np.stack(SPARSE), LABELS, 4)
    assert found.shifts[2] is not None and found.shifts[2].shift < -0.2 and found.shifts[2].p < 0.05
    row = found.to_dict()
    assert row["identified"] == np.flatnonzero(expected.identified).tolist() and row["name"] == "gmp"
    ((name, cells),) = population_table([found]).rows
    assert name == "gmp" and cells[:2] == ("0.9", "3") and cells[-1].startswith("1, ")
    assert cells[2] == f"{expected.identified.sum()} ({100 * expected.rate:.1f} %)"


def test_one_seed_or_other_test_samples_make_no_population():
    assert populations([CELLS[0], CELLS[3]]) == []
    other = answered("gmp", 0.9, 1, SPARSE[1], fingerprint="b")
    assert populations([*CELLS[:4], other]) == []
    assert [found.found.seeds for found in populations([*CELLS[:4], CELLS[4]])] == [2]


def test_pages_have_the_table_only_if_there_is_one():
    summary, found = summarise([]), populations(CELLS)
    text = markdown("a grid", summary, [], found)
    assert "## Answers beside dense models" in text and "| gmp | 0.9 | 3 |" in text
    assert "Answers beside dense models" not in markdown("a grid", summary, [])
