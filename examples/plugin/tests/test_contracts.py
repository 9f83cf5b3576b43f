"""What the package brings keeps the contracts of its kind."""

from __future__ import annotations

import torch
from sparsify_example import BoundActivations, Ordinal, Platt, by_inputs, mest

from sparsify.contracts import check


def test_the_method() -> None:
    check(mest(density=0.2, update_every=5))


def test_the_method_with_the_allocation() -> None:
    check(mest(density=0.2, update_every=5, allocation=by_inputs))


def test_the_pass() -> None:
    check(BoundActivations(at=0.5))


def test_the_task() -> None:
    generator = torch.Generator().manual_seed(0)
    check(Ordinal(), torch.randn(40, 4, generator=generator), torch.randint(5, (40,), generator=generator))


def test_the_calibration_head() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(400, generator=generator)
    check(Platt(), "binary", 3 * logits + 1, (torch.rand(400, generator=generator) < logits.sigmoid()).long())
