"""The finite check of gradients: one entry is found, and an overflowing sum is none."""

from __future__ import annotations

import pytest
import torch

from sparsify.training.gradients import are_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("bad", [[float("nan")], [float("inf")], [float("inf"), float("-inf")]])
def test_one_entry_that_is_not_finite_is_found(dtype: torch.dtype, bad: list[float]) -> None:
    values = [torch.ones(3, 4, dtype=dtype), torch.ones(7, dtype=dtype), torch.ones(0, dtype=dtype)]
    assert are_finite(values)
    for index, value in enumerate(bad):
        values[index].view(-1)[2] = value
    assert not are_finite(values)


def test_sums_that_overflow_are_no_entries_that_do() -> None:
    assert are_finite(
        [torch.full((4,), torch.finfo(torch.float32).max), torch.full((9,), 60000.0, dtype=torch.float16)]
    )
