"""A lowered mask has the gradients of the product, however often they are taken."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sparsify.ir.gradients import KEPT_AS_NUMBERS, multiplier
from sparsify.ir.nodes import GradientTap, masked_view, vouch


def lowered(weight: Tensor, mask: Tensor, *, tapped: bool = False) -> Tensor:
    read = masked_view(weight, mask, "unstructured", "tapped" if tapped else "masked")
    return GradientTap()(read, mask) if tapped else read


@pytest.mark.parametrize("tapped", [True, False])
@pytest.mark.parametrize("clean", [True, False])
def test_a_lowered_weight_has_the_gradients_of_the_product(tapped: bool, clean: bool) -> None:
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
        gradients(lowered(weight, mask, tapped=tapped)),
        gradients(weight * mask),
        strict=True,
    ):
        assert torch.equal(found, expected)
    with torch.no_grad():
        assert torch.equal(masked_view(weight, mask, "unstructured"), weight)


@pytest.mark.parametrize("tapped", [True, False])
def test_a_gradient_that_somebody_else_holds_is_masked_in_a_copy(tapped: bool) -> None:
    mask = torch.tensor([[True, False, True], [False, True, False]])
    weight, other = mask.float().requires_grad_(), torch.zeros(2, 3, requires_grad=True)
    vouch(weight, mask)
    given, row = torch.full((2, 3), 2.0), torch.full((1, 3), 2.0)
    want, dense = 2.0 * mask, torch.full((2, 3), 2.0)

    def read() -> Tensor:
        weight.grad = other.grad = None
        return lowered(weight, mask, tapped=tapped)

    for giving in (given, given.view(2, 3), given.detach(), row.expand(2, 3)):
        value = read()
        torch.autograd.backward([value], [giving])  # by the user
        assert torch.equal(giving, dense) and torch.equal(weight.grad, want)
    torch.autograd.backward([read() + other], [given])  # one gradient for both
    assert torch.equal(other.grad, dense) and torch.equal(weight.grad, want) and torch.equal(given, dense)
    for order in (1, -1):
        value = read()
        joined = torch.cat([value, other][::order])
        torch.autograd.backward([joined, value.sum(), other.sum()], [torch.full((4, 3), 1.0), None, None])
        assert torch.equal(other.grad, dense) and torch.equal(weight.grad, want)
    kept: list[Tensor] = []
    value = read()
    value.register_hook(lambda gradient: kept.append(gradient))
    sum_ = value * 1.0
    sum_.retain_grad()
    torch.autograd.backward([sum_], [given])
    assert torch.equal(sum_.grad, dense) and torch.equal(weight.grad, want)
    (taken,) = torch.autograd.grad(read().view(6) * 2.0, weight, torch.ones(6))
    assert torch.equal(taken, want)


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
