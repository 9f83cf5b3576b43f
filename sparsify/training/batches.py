"""The batches of a run, determined by its seed: for an epoch, for a sweep, and for batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sparsify.parts.samples import Batch, Samples
from sparsify.parts.trees import Tree, moved
from sparsify.training.fetching import fetch
from sparsify.training.settings import Settings

REESTIMATED = 100
"""Number of batches from which batch-norm statistics are estimated again after averaging weights."""
SWEEP = 2**40
"""Added to the seed for the random orders of a method's sweeps over the training data."""


class Batches:
    """Training samples in batches, on the device of a run.

    Args:
        samples: the training samples, at least one batch.
        settings: gives batch size, seed and workers.
        device: the device of the run.

    Attributes:
        per_epoch: number of whole batches in the samples; a last, smaller batch is dropped.
    """

    def __init__(self, samples: Samples, settings: Settings, device: torch.device) -> None:
        self._samples, self._settings, self._device = samples, settings, device
        self._seed = settings.seed * 1_000_003
        self.per_epoch = len(samples) // settings.batch_size

    def epoch(self, step: int) -> Iterator[Batch]:
        """Yield the batches of the epoch that contains step ``step`` (from 0), starting with that step."""
        epoch, first = divmod(step, self.per_epoch)
        order = torch.randperm(len(self._samples), generator=torch.Generator().manual_seed(self._seed + epoch))
        rows = order.split(self._settings.batch_size)[first : self.per_epoch]
        seeds = range(self._seed + step, self._seed + (epoch + 1) * self.per_epoch)
        return self._fetched(rows, seeds)

    def sweep(self, step: int) -> Iterator[Batch]:
        """Yield as many batches as an epoch has, in a random order that depends on ``step``."""
        generator = torch.Generator().manual_seed(self._seed + step + SWEEP)
        rows = torch.randperm(len(self._samples), generator=generator).split(self._settings.batch_size)[
            : self.per_epoch
        ]
        return self._fetched(rows, torch.randint(2**31, (self.per_epoch,), generator=generator).tolist())

    def inputs(self) -> Iterator[Tree]:
        """Yield the inputs of up to `REESTIMATED` batches in random order, because samples may be sorted by class."""
        order = torch.randperm(len(self._samples), generator=torch.Generator().manual_seed(self._settings.seed))
        rows = order.split(self._settings.batch_size)[: min(REESTIMATED, self.per_epoch)]
        for index, some in enumerate(rows):
            yield moved(self._samples.batch(some, seed=self._settings.seed + index).inputs, self._device)

    def _fetched(self, rows: tuple[torch.Tensor, ...], seeds: range | list[int]) -> Iterator[Batch]:
        for x, y in fetch(self._samples, rows, seeds, workers=self._settings.workers):
            yield Batch(moved(x, self._device), moved(y, self._device))
