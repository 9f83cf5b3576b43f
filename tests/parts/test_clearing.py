"""Cleared entries are +0, whatever they were, and the others keep their bits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sparsify.parts.clearing import PIECE, clear

AWKWARD = [-0.0, 0.0, math.nan, -math.nan, math.inf, -math.inf, 1.5, -2.0]


def bits(value: Tensor) -> list[int]:
    return value.contiguous().view(torch.uint8).flatten().tolist()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_cleared_entries_are_zero_and_the_others_keep_their_bits(dtype: torch.dtype, layout: str) -> None:
    where = torch.tensor([[True, False] * 4, [False, True] * 4])
    value = torch.tensor([AWKWARD, AWKWARD])
    value = (value.nan_to_num(1.0, 1.0, 1.0) if not dtype.is_floating_point else value).to(dtype)
    if layout == "columns":
        where, value = where.t().contiguous().t(), value.t().contiguous().t()
    want = torch.where(where, torch.zeros((), dtype=dtype), value)
    clear([value], where)
    assert bits(value) == bits(want)


def test_several_tensors_larger_than_a_piece_are_cleared_and_count_as_written():
    where = torch.arange(PIECE + 3) % 3 == 0
    weight, state = nn.Parameter(torch.full((PIECE + 3,), -1.0)), torch.ones(PIECE + 3, dtype=torch.float64)
    before = weight._version
    with torch.no_grad():
        clear([weight, state], where)
    assert torch.equal(weight, -(~where).float()) and torch.equal(state, (~where).double()) and weight._version > before
