"""Runs that leave no trace: every buffer has its value, its shape and its memory again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.ir.agreement import untouched


class Writing(nn.Module):
    """Writes its buffers; one of them is a row that stands for four, as masks of groups do, one is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.row = torch.arange(3.0)
        self.register_buffer("groups", self.row.expand(4, 3))
        self.register_buffer("unknown", torch.tensor([torch.nan, 1.0]))
        self.register_buffer("grown", torch.zeros(2))
        self.register_buffer("scalar", torch.tensor(1.0))

    def forward(self) -> None:
        self.row.add_(1)
        self.unknown.fill_(2)
        self.grown.resize_(5)
        self.scalar = torch.tensor(3.0)


@pytest.mark.parametrize("writes", [True, False])
def test_buffers_are_put_back_whatever_memory_they_share(writes):
    model = Writing()
    groups, before = model.groups, {name: value.clone() for name, value in model.named_buffers()}
    with untouched(model):
        if writes:
            model()
    assert model.groups is groups and groups.stride() == (0, 1) and groups.data_ptr() == model.row.data_ptr()
    for name, value in model.named_buffers():
        assert torch.equal(value.nan_to_num(-1), before[name].nan_to_num(-1)) and value.shape == before[name].shape
