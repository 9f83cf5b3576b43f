"""The batches of a run, which follow from its seed: of an epoch, of a sweep, and for statistics."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sparsify.parts.samples import Batch, Samples
from sparsify.parts.trees import Tree, moved
from sparsify.training.fetching import fetch
from sparsify.training.settings import Settings

REESTIMATED = 100
"""Batches from which batch-norm statistics are taken again after weights were averaged."""
SWEEP = 2**40
"""Added to the seed of orders that a method's sweeps over the training data draw."""


class Batches:
    """Training samples in batches, on the device of a run.

    Args:
        samples: at least a batch of them.
        settings: batch size, seed and workers.
        device: of the run.

    Attributes:
        per_epoch: whole batches in the samples; a last, smaller one is left out.
    """

    def __init__(self, samples: Samples, settings: Settings, device: torch.device) -> None:
        self._samples, self._settings, self._device = samples, settings, device
        self._seed = settings.seed * 1_000_003
        self.per_epoch = len(samples) // settings.batch_size

    def epoch(self, step: int) -> Iterator[Batch]:
        """Those of the epoch that step number ``step`` (from 0) is in, from that step on."""
        epoch, first = divmod(step, self.per_epoch)
        order = torch.randperm(len(self._samples), generator=torch.Generator().manual_seed(self._seed + epoch))
        rows = order.split(self._settings.batch_size)[first : self.per_epoch]
        seeds = range(self._seed + step, self._seed + (epoch + 1) * self.per_epoch)
        return self._fetched(rows, seeds)

    def sweep(self, step: int) -> Iterator[Batch]:
        """As many as an epoch has, in an order of step number ``step``."""
        generator = torch.Generator().manual_seed(self._seed + step + SWEEP)
        rows = torch.randperm(len(self._samples), generator=generator).split(self._settings.batch_size)[
            : self.per_epoch
        ]
        return self._fetched(rows, torch.randint(2**31, (self.per_epoch,), generator=generator).tolist())

    def inputs(self) -> Iterator[Tree]:
        """Inputs of up to `REESTIMATED` batches, in an order drawn by the seed: samples may be sorted by class."""
        order = torch.randperm(len(self._samples), generator=torch.Generator().manual_seed(self._settings.seed))
        rows = order.split(self._settings.batch_size)[: min(REESTIMATED, self.per_epoch)]
        for index, some in enumerate(rows):
            yield moved(self._samples.batch(some, seed=self._settings.seed + index).inputs, self._device)

    def _fetched(self, rows: tuple[torch.Tensor, ...], seeds: range | list[int]) -> Iterator[Batch]:
        for x, y in fetch(self._samples, rows, seeds, workers=self._settings.workers):
            yield Batch(moved(x, self._device), moved(y, self._device))
