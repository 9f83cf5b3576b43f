"""Samples: labelled inputs, fetched by index. What training, calibration and export read their data from."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor


class Samples(Protocol):
    """N labelled inputs.

    Attributes:
        labels: int64 [N].
    """

    labels: Tensor

    def __len__(self) -> int:
        """N."""
        ...

    def batch(self, rows: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Inputs [B, ...] and labels [B] of the samples ``rows``, int64 [B]; ``seed`` of what is random in fetching them."""
        ...

    def fingerprint(self) -> str:
        """A text that changes when the samples change."""
        ...


def as_inputs(values: Tensor) -> Tensor:
    """Values as a model takes them: bytes as float32 in [0, 1], other floats and bools as float32, whole numbers (tokens) as int64."""
    if values.dtype is torch.uint8:
        return values.float() / 255
    return values.float() if values.is_floating_point() or values.dtype is torch.bool else values.long()


class TensorSamples:
    """Samples in memory, kept as they are (bytes stay bytes) and normalised a batch at a time.

    Args:
        inputs: [N, ...]; fetched through `as_inputs`.
        labels: int64 [N].
        mean, std: per channel (dimension 1), subtracted and divided by; None leaves values as they are.
    """

    def __init__(
        self, inputs: Tensor, labels: Tensor, *, mean: Tensor | None = None, std: Tensor | None = None
    ) -> None:
        if len(inputs) != len(labels):
            raise ValueError(f"{len(inputs)} inputs and {len(labels)} labels should be as many")
        self.inputs, self.labels = inputs, labels
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        del seed
        values = as_inputs(self.inputs[rows])
        if self.mean is not None and self.std is not None:
            shape = (1, -1, *(1,) * (values.ndim - 2))
            values = (values - self.mean.view(shape)) / self.std.view(shape)
        return values, self.labels[rows]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(str((self.inputs.dtype, tuple(self.inputs.shape))).encode())
        for tensor in (self.inputs, self.labels):
            for piece in tensor.split(4096):
                digest.update(piece.contiguous().numpy().tobytes())
        return digest.hexdigest()


class Subset:
    """Some samples of another; ``rows`` int64 [M]."""

    def __init__(self, base: Samples, rows: Tensor) -> None:
        self._base, self._rows = base, rows
        self.labels = base.labels[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        return self._base.batch(self._rows[rows], seed=seed)

    def fingerprint(self) -> str:
        return self._base.fingerprint() + hashlib.sha256(self._rows.numpy().tobytes()).hexdigest()
