"""Samples: inputs with their targets, fetched by index. What training, calibration and export read their data from."""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sparsify.parts.trees import Tree, described, mapped, rows_of, tensors


class Batch(NamedTuple):
    """Samples as a program takes them, and what their outputs are compared with.

    Attributes:
        inputs: a tensor, the only input; a tuple, one for each positional input; or a mapping, by the names that ``forward`` gives.
        target: what belongs to them: class numbers [B], or whatever the task compares outputs with. Every tensor of both has B rows.
    """

    inputs: Tree
    target: Tree


class Samples(Protocol):
    """N inputs with their targets.

    Attributes:
        targets: N rows in each tensor; class numbers are int64 [N].
    """

    targets: Tree

    def __len__(self) -> int:
        """N."""
        ...

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        """The samples ``rows``, int64 [B]; ``seed`` decides what is random in fetching them."""
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
        inputs: tensors [N, ...], fetched through `as_inputs`.
        targets: tensors [N, ...], fetched as they are.
        mean, std: per channel (dimension 1) of an only input, subtracted and divided by; None leaves values as they are.
    """

    def __init__(self, inputs: Tree, targets: Tree, *, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        rows = {len(tensor) for tensor in tensors((inputs, targets))}
        if len(rows) != 1:
            raise ValueError(f"{rows_of(inputs)} inputs and {rows_of(targets)} targets should be as many")
        self.inputs, self.targets = inputs, targets
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return rows_of(self.targets)

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        del seed
        values = mapped(lambda tensor: as_inputs(tensor[rows]), self.inputs)
        if self.mean is not None and self.std is not None:
            shape = (1, -1, *(1,) * (values.ndim - 2))
            values = (values - self.mean.view(shape)) / self.std.view(shape)
        return Batch(values, mapped(lambda tensor: tensor[rows], self.targets))

    def fingerprint(self) -> str:
        plain = isinstance(self.inputs, Tensor)
        form = str((self.inputs.dtype, tuple(self.inputs.shape))) if plain else described(self.inputs)
        digest = hashlib.sha256(form.encode())
        for tensor in tensors((self.inputs, self.targets)):
            for piece in tensor.split(4096):
                digest.update(piece.contiguous().numpy().tobytes())
        return digest.hexdigest()


class Subset:
    """Some samples of another; ``rows`` int64 [M]."""

    def __init__(self, base: Samples, rows: Tensor) -> None:
        self._base, self._rows = base, rows
        self.targets = mapped(lambda tensor: tensor[rows], base.targets)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        return self._base.batch(self._rows[rows], seed=seed)

    def fingerprint(self) -> str:
        return self._base.fingerprint() + hashlib.sha256(self._rows.numpy().tobytes()).hexdigest()
