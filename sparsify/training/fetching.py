"""Fetches batches in worker processes, ahead of the steps that use them."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sparsify.errors import SparsifyError, TrainingError
from sparsify.parts.samples import Batch, Samples


def fetch(samples: Samples, rows: Sequence[Tensor], seeds: Sequence[int], *, workers: int = 0) -> Iterator[Batch]:
    """Yield the batches ``samples.batch(rows[i], seed=seeds[i])`` in order; their values do not depend on ``workers``.

    Args:
        samples: the samples to read.
        rows: indices of each batch, int64 [B].
        seeds: one seed per batch.
        workers: number of worker processes; 0 fetches each batch in this process when it is needed.

    Raises:
        SparsifyError: If fetching raises one; it is raised again in this process.
        TrainingError: If a worker process died.
        RuntimeError: If the samples raise any other error.
    """
    if workers == 0:
        for some, seed in zip(rows, seeds, strict=True):
            yield samples.batch(some, seed=seed)
        return
    own = torch.Generator()  # a loader draws a seed for its workers, which must not advance the generator of the run
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
    """Item i is batch i, or the error that fetching it raised. Raising it would turn the worker's traceback into its message."""

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
    """Ignore Ctrl-C in workers; the training process handles it and ends them."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
