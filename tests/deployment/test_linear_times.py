"""Predicted times: the grouped form pays where rows are many or layers large, as `benchmarks/layer_forms.py` measures."""

from __future__ import annotations

import pytest

from sparsify.deployment.linear_times import Use, dense_time, follow_time, grouped_time, turn_time


def gain(width, outputs, rows, **options):
    """Times as fast, 90 % sparse in groups of so many outputs."""
    use = Use(rows, **options)
    return dense_time(use, width, width) / grouped_time(use, width, width // outputs, width // 10, 1)


def test_by_hand():
    use = Use(2)
    assert dense_time(use, 10, 100) == pytest.approx(1.7 + 1e-3 * (90 + 50 + 6))
    grouped = 1.5 + 2 * 0.09 + 1e-3 * (11 * 40 + 0.2 * 40 * 2 + (0.28 + 0.05) * 200)
    assert grouped_time(use, 10, 2, 20, 1) == pytest.approx(grouped)
    assert turn_time(use, 100) == pytest.approx(0.53)
    assert follow_time(use, 10, 100) == pytest.approx(0.5 + 0.3 * 14 / 16)
    assert follow_time(Use(16), 10, 100) == follow_time(Use(1), 10, 100) == 0.5


@pytest.mark.parametrize(
    ("width", "outputs", "rows", "matrix", "measured"),
    [  # ratios of chains of four layers; their ends cost a little more than is predicted here
        (64, 8, 2, False, 0.80), (64, 8, 64, False, 1.81), (64, 32, 128, False, 3.64), (128, 8, 2, False, 0.62),
        (256, 64, 32, False, 6.42), (512, 16, 1, False, 1.15), (512, 32, 64, False, 6.31), (1024, 8, 4, False, 1.32),
        (64, 16, 4, True, 0.68), (128, 16, 32, True, 2.11), (512, 8, 1, True, 1.77), (512, 8, 2, True, 0.47), (1024, 32, 2, True, 3.46),
    ],
)  # fmt: skip
def test_predictions_are_near_what_was_measured(width, outputs, rows, matrix, measured):
    assert measured / 1.3 < gain(width, outputs, rows, matrix=matrix) < measured * 1.8


def test_one_row_of_a_matrix_has_a_selection_of_its_own_where_there_are_indices_enough():
    assert gain(512, 8, 1, matrix=True) > 1.5 * gain(512, 8, 1, matrix=True, picks=False)
    use, closed = Use(1, matrix=True), Use(1, matrix=True, open=False)
    assert not use.is_picked(300, 1) and closed.is_picked(300, 1) and use.is_picked(512, 1)
    assert not use.is_picked(512, 4) and not Use(2, matrix=True).is_picked(512, 1) and not Use(1).is_picked(512, 1)
