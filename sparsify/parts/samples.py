"""Samples: inputs with their targets, fetched by index. What training, calibration and export read their data from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sparsify.parts.trees import Tree, described, mapped, rows_of, tensors

Statistic = Tensor | Mapping[Any, Tensor]
"""One value per channel; of several inputs, by their name or position."""


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


def batch_inputs(inputs: Tree) -> Tree:
    """The inputs of a batch as a model takes them: an only one as `as_inputs`; of several, truth values (masks) stay as they are."""
    if isinstance(inputs, Tensor):
        return as_inputs(inputs)
    return mapped(lambda tensor: tensor if tensor.dtype is torch.bool else as_inputs(tensor), inputs)


class TensorSamples:
    """Samples in memory, kept as they are (bytes stay bytes) and normalised a batch at a time.

    Args:
        inputs: tensors [N, ...], fetched through `batch_inputs`.
        targets: tensors [N, ...], fetched as they are.
        mean, std: per channel (dimension 1), subtracted and divided by; of inputs by name or position: mappings of those of some.
            None leaves values as they are.
    """

    def __init__(
        self, inputs: Tree, targets: Tree, *, mean: Statistic | None = None, std: Statistic | None = None
    ) -> None:
        rows = {len(tensor) for tensor in tensors((inputs, targets))}
        if len(rows) != 1:
            raise ValueError(f"{rows_of(inputs)} inputs and {rows_of(targets)} targets should be as many")
        self.inputs, self.targets = inputs, targets
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return rows_of(self.targets)

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        del seed
        values = batch_inputs(mapped(lambda tensor: tensor[rows], self.inputs))
        target = mapped(lambda tensor: tensor[rows], self.targets)
        if self.mean is None or self.std is None:
            return Batch(values, target)
        if isinstance(self.mean, Tensor) or isinstance(self.std, Tensor):
            assert isinstance(self.mean, Tensor) and isinstance(self.std, Tensor)
            return Batch(_normalised(values, self.mean, self.std), target)
        found = dict(values) if isinstance(values, Mapping) else dict(enumerate(values))
        found |= {key: _normalised(found[key], mean, self.std[key]) for key, mean in self.mean.items()}
        return Batch(found if isinstance(values, Mapping) else tuple(found.values()), target)

    def fingerprint(self) -> str:
        plain = isinstance(self.inputs, Tensor)
        form = str((self.inputs.dtype, tuple(self.inputs.shape))) if plain else described(self.inputs)
        digest = hashlib.sha256(form.encode())
        for tensor in tensors((self.inputs, self.targets)):
            for piece in tensor.split(4096):
                digest.update(piece.contiguous().numpy().tobytes())
        return digest.hexdigest()


def _normalised(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    shape = (1, -1, *(1,) * (values.ndim - 2))
    return (values - mean.view(shape)) / std.view(shape)


def targets_of(samples: Samples, rows: Tensor) -> Tree:
    """The targets of some samples, int64 [M]: padded to the longest of these, where samples know their lengths."""
    own: Callable[[Tensor], Tree] | None = getattr(samples, "targets_of", None)
    return mapped(lambda tensor: tensor[rows], samples.targets) if own is None else own(rows)


class Subset:
    """Some samples of another; ``rows`` int64 [M]."""

    def __init__(self, base: Samples, rows: Tensor) -> None:
        self._base, self._rows = base, rows
        self.targets = targets_of(base, rows)

    def __len__(self) -> int:
        return len(self._rows)

    def targets_of(self, rows: Tensor) -> Tree:
        """The targets of some of its samples; see `targets_of`."""
        return targets_of(self._base, self._rows[rows])

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        return self._base.batch(self._rows[rows], seed=seed)

    def fingerprint(self) -> str:
        return self._base.fingerprint() + hashlib.sha256(self._rows.numpy().tobytes()).hexdigest()
