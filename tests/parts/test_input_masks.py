"""Masks of inputs: their share, what they leave alone, and what cannot be masked."""

from __future__ import annotations

import pytest
import torch

from sparsify.parts.input_masks import masked_inputs
from tests.cases import digits


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_share_of_the_elements_is_0_and_the_rest_is_as_it_was():
    x = digits(300)[0] + 1
    found = masked_inputs(x, 0.3, draws())
    masked = found == 0
    assert abs(float(masked.float().mean()) - 0.3) < 4 * (0.3 * 0.7 / x.numel()) ** 0.5
    assert torch.equal(found[~masked], x[~masked]) and float(x.min()) == 1
    assert torch.equal(found, masked_inputs(x, 0.3, draws())) and not torch.equal(
        found, masked_inputs(x, 0.3, draws(1))
    )
    assert torch.equal(masked_inputs(x, 1e-12, draws()), x)


def test_of_several_inputs_those_of_floats_are_masked():
    x = {"image": torch.ones(50, 4), "ids": torch.arange(50), "mask": torch.ones(50, 4, dtype=torch.bool)}
    found = masked_inputs(x, 0.5, draws())
    assert found.keys() == x.keys() and 0.3 < float(found["image"].mean()) < 0.7
    assert torch.equal(found["ids"], x["ids"]) and torch.equal(found["mask"], x["mask"])
    pair = masked_inputs((torch.ones(50), torch.ones(50)), 0.5, draws())
    assert isinstance(pair, tuple) and not torch.equal(*pair)


def test_infinite_elements_are_masked_like_others():
    assert torch.isfinite(masked_inputs(torch.full((1000,), torch.inf), 0.9, draws())).float().mean() > 0.8


@pytest.mark.parametrize("inputs", [torch.arange(6).reshape(2, 3), (torch.arange(2), torch.ones(2, dtype=torch.bool))])
def test_whole_numbers_alone_are_refused(inputs):
    with pytest.raises(ValueError, match="are whole numbers or bools, of which none can be masked with 0"):
        masked_inputs(inputs, 0.3, draws())
