"""Batches from worker processes are the same bits as from this one; errors come back as they are."""

from __future__ import annotations

import pytest
import torch

from sparsify.errors import DataError
from sparsify.parts.samples import Batch, TensorSamples
from sparsify.training.fetching import fetch


class Noise:
    """Samples that are random by their seed alone."""

    targets = torch.arange(8)

    def __len__(self):
        return 8

    def batch(self, rows, *, seed=0):
        if 7 in rows.tolist():
            raise DataError("sample 7 is damaged")
        generator = torch.Generator().manual_seed(seed)
        return Batch(torch.rand(len(rows), 3, generator=generator), self.targets[rows])

    def fingerprint(self):
        return "noise"


ROWS = list(torch.arange(6).split(2))


def test_order_rows_and_seeds_by_hand():
    samples = TensorSamples(torch.arange(6.0).view(6, 1), torch.arange(6))
    assert [(x.flatten().tolist(), y.tolist()) for x, y in fetch(samples, ROWS, [0, 1, 2])] == [
        ([0.0, 1.0], [0, 1]), ([2.0, 3.0], [2, 3]), ([4.0, 5.0], [4, 5]),
    ]  # fmt: skip


def test_workers_change_no_bit_and_draw_nothing_from_the_global_generator():
    state = torch.random.get_rng_state()
    alone = list(fetch(Noise(), ROWS, [5, 6, 7]))
    for workers in (1, 2):
        for (x, y), (expected, labels) in zip(fetch(Noise(), ROWS, [5, 6, 7], workers=workers), alone, strict=True):
            assert torch.equal(x, expected) and torch.equal(y, labels)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_comes_back_as_it_was_raised(workers):
    batches = fetch(Noise(), [torch.tensor([0]), torch.tensor([7])], [0, 1], workers=workers)
    next(batches)
    with pytest.raises(DataError) as raised:
        next(batches)
    assert str(raised.value) == "sample 7 is damaged"
