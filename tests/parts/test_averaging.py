"""Running means."""

from __future__ import annotations

import torch

from sparsify.parts.averaging import running_mean


def test_the_mean_of_three():
    values, mean = [torch.tensor([1.0, 8.0]), torch.tensor([3.0, 2.0]), torch.tensor([5.0, -1.0])], None
    for count, value in enumerate(values, start=1):
        mean = running_mean(mean, value, count)
    assert mean is not None
    assert torch.equal(mean, torch.tensor([3.0, 3.0]))


def test_the_first_value_is_copied():
    value = torch.tensor([0.1])
    mean = running_mean(None, value, 1)
    value += 1
    assert torch.equal(mean, torch.tensor([0.1]))
