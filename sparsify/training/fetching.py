"""Batches fetched ahead of the step that uses them, in processes of their own."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sparsify.errors import SparsifyError, TrainingError
from sparsify.parts.samples import Batch, Samples


def fetch(samples: Samples, rows: Sequence[Tensor], seeds: Sequence[int], *, workers: int = 0) -> Iterator[Batch]:
    """The batches ``samples.batch(rows[i], seed=seeds[i])`` in order; their bits do not depend on ``workers``.

    Args:
        samples: what to read.
        rows: int64 [B] each.
        seeds: as many.
        workers: processes; 0 fetches in this one, when a batch is asked for.

    Raises:
        SparsifyError: What fetching raised, in this process.
        TrainingError: If a worker process ended by itself.
        RuntimeError: What else the samples raised, in this process.
    """
    if workers == 0:
        for some, seed in zip(rows, seeds, strict=True):
            yield samples.batch(some, seed=seed)
        return
    own = torch.Generator()  # a loader draws a seed for its workers; it may not come from the generator of the run
    loader = DataLoader(
        _Batches(samples, rows, seeds),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_leave_signals,
        generator=own,
    )
    try:
        for batch in loader:
            if isinstance(batch, SparsifyError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(f"{str(error).splitlines()[0]} Lower workers, or set it to 0.") from error


class _Batches(Dataset[Batch | SparsifyError]):
    """Item i is batch i, or the error in its place: a raised one would come back with the worker's traceback as its text."""

    def __init__(self, samples: Samples, rows: Sequence[Tensor], seeds: Sequence[int]) -> None:
        self._samples, self._rows, self._seeds = samples, rows, seeds

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Batch | SparsifyError:
        try:
            return self._samples.batch(self._rows[index], seed=self._seeds[index])
        except SparsifyError as error:
            return error


def _leave_signals(worker: int) -> None:
    """Ctrl-C is for the process that trains; it ends its workers."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
