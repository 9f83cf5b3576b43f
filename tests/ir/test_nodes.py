"""A lowered mask has the gradients of the product, however often they are taken."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sparsify.ir.nodes import KEPT_AS_NUMBERS, masked_view, multiplier, vouch


@pytest.mark.parametrize("gradient", ["copied", "in-place"])
@pytest.mark.parametrize("clean", [True, False])
def test_a_lowered_weight_has_the_gradients_of_the_product(gradient: str, clean: bool) -> None:
    mask = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    weight = (torch.randn(5, 6, generator=torch.Generator().manual_seed(1)) * mask).requires_grad_()
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    if clean:
        vouch(weight, mask)

    def gradients(read: Tensor) -> tuple[Tensor, Tensor]:
        loss = nn.functional.linear(x, read).sigmoid().square().sum()
        (first,) = torch.autograd.grad(loss, weight, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), weight)
        return first.detach(), second

    for found, expected in zip(
        gradients(masked_view(weight, mask, "unstructured", gradient)),  # type: ignore[arg-type]
        gradients(weight * mask),
        strict=True,
    ):
        assert torch.equal(found, expected)
    with torch.no_grad():
        assert torch.equal(masked_view(weight, mask, "unstructured"), weight)


def test_the_multiplier_of_a_mask_follows_each_write_to_it():
    mask = torch.tensor([[True, False], [True, True]])
    first = multiplier(mask, torch.float32)
    assert first is multiplier(mask, torch.float32)
    assert first.tolist() == [[1.0, 0.0], [1.0, 1.0]]
    mask[0, 0] = False
    assert multiplier(mask, torch.float32).tolist() == [[0.0, 0.0], [1.0, 1.0]]
    mask.copy_(torch.tensor([[False, True], [False, False]]))
    assert multiplier(mask, torch.float64).tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert multiplier(mask, torch.float64).dtype is torch.float64
    assert multiplier(copy.deepcopy(mask).logical_not_(), torch.float32).tolist() == [[1.0, 0.0], [1.0, 1.0]]


def test_large_masks_are_multiplied_by_as_bytes_in_their_own_memory():
    mask = torch.rand(KEPT_AS_NUMBERS + 1) < 0.5
    assert multiplier(mask, torch.float32).data_ptr() == mask.data_ptr()
    assert "as_numbers" not in mask.__dict__
