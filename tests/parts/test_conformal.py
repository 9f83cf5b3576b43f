"""Split conformal intervals: by hand, by counting, and in their guarantee."""

from __future__ import annotations

import pytest
import torch

from sparsify.parts.conformal import needed, reach


def test_by_hand():
    errors = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert reach(errors, 0.5).item() == 3.0  # ceil(5 * 0.5) = 3rd smallest
    assert reach(errors, 0.8).item() == 4.0  # ceil(5 * 0.8) = 4th
    assert reach(errors, 0.9).item() == 4.0  # the 5th is not there
    assert reach(torch.stack([errors, 10 * errors], 1), 0.5).tolist() == [3.0, 30.0]


@pytest.mark.parametrize(("level", "count"), [(0.9, 9), (0.95, 19), (0.5, 1), (0.99, 99), (0.6, 2)])
def test_samples_that_a_level_needs(level, count):
    assert needed(level) == count
    assert reach(torch.arange(1.0, count + 1), level).item() == count  # the largest, and the level holds


def test_the_guarantee_holds_with_few_samples():
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(20000, 20, generator=generator).abs()
    held = torch.stack([row[-1] <= reach(row[:-1], 0.9) for row in errors])
    assert abs(float(held.double().mean()) - 18 / 20) < 0.01  # ceil(20 * 0.9) = 18 of 20 places


@pytest.mark.parametrize("errors", [torch.zeros(0), torch.tensor([1.0, float("nan")])])
def test_errors_that_say_nothing_are_refused(errors):
    with pytest.raises(ValueError, match="at least one sample"):
        reach(errors, 0.9)
