"""A lowered mask has the gradients of the product, however often they are taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsify.ir.nodes import masked_view, vouch


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
