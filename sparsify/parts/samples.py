"""Samples: inputs with their targets, fetched by index. Training, calibration and export read their data from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sparsify.parts.trees import Tree, described, mapped, rows_of, tensors

Statistic = Tensor | Mapping[Any, Tensor]
"""One value per channel; for several inputs, a mapping by their name or position."""


class Batch(NamedTuple):
    """B samples: inputs as a program takes them, and the targets that its outputs are compared with.

    Attributes:
        inputs: a tensor if there is one input; a tuple of positional inputs; or a mapping by the argument names of ``forward``.
        target: class numbers int64 [B], or whatever the task compares outputs with. Every tensor of inputs and target has B rows.
    """

    inputs: Tree
    target: Tree


class Samples(Protocol):
    """N inputs with their targets.

    Attributes:
        targets: all targets; each tensor has N rows. Class numbers are int64 [N].
    """

    targets: Tree

    def __len__(self) -> int:
        """Return N, the number of samples."""
        ...

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        """Fetch the samples with indices ``rows``, int64 [B]; ``seed`` decides everything random about fetching, such as augmentation."""
        ...

    def fingerprint(self) -> str:
        """Return a text that changes if the samples change."""
        ...


def as_inputs(values: Tensor) -> Tensor:
    """Convert values for a model: bytes to float32 in [0, 1], floats and bools to float32, other whole numbers (tokens) to int64."""
    if values.dtype is torch.uint8:
        return values.float() / 255
    return values.float() if values.is_floating_point() or values.dtype is torch.bool else values.long()


def batch_inputs(inputs: Tree) -> Tree:
    """Convert the inputs of a batch with `as_inputs`. If there are several inputs, bool ones (masks) stay bool."""
    if isinstance(inputs, Tensor):
        return as_inputs(inputs)
    return mapped(lambda tensor: tensor if tensor.dtype is torch.bool else as_inputs(tensor), inputs)


class TensorSamples:
    """Samples in memory, stored in their own dtype (bytes stay bytes) and normalised when a batch is fetched.

    Args:
        inputs: tensors [N, ...], converted by `batch_inputs` when fetched.
        targets: tensors [N, ...], fetched unchanged.
        mean, std: one number per channel (dimension 1); fetched values are ``(value - mean) / std``. For several inputs, a mapping by
            name or position; inputs that it leaves out are not normalised. None: no normalisation.
    """

    def __init__(
        self, inputs: Tree, targets: Tree, *, mean: Statistic | None = None, std: Statistic | None = None
    ) -> None:
        rows = {len(tensor) for tensor in tensors((inputs, targets))}
        if len(rows) != 1:
            raise ValueError(
                f"expected as many inputs as targets, found {rows_of(inputs)} inputs and {rows_of(targets)} targets"
            )
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
    """Return the targets of the samples ``rows``, int64 [M]; sequences are padded to the longest of these if samples know their lengths."""
    own: Callable[[Tensor], Tree] | None = getattr(samples, "targets_of", None)
    return mapped(lambda tensor: tensor[rows], samples.targets) if own is None else own(rows)


class Subset:
    """A selection of other samples, by indices ``rows``, int64 [M]."""

    def __init__(self, base: Samples, rows: Tensor) -> None:
        self._base, self._rows = base, rows
        self.targets = targets_of(base, rows)

    def __len__(self) -> int:
        return len(self._rows)

    def targets_of(self, rows: Tensor) -> Tree:
        """Return the targets of some of its samples; see `sparsify.parts.samples.targets_of`."""
        return targets_of(self._base, self._rows[rows])

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        return self._base.batch(self._rows[rows], seed=seed)

    def fingerprint(self) -> str:
        return self._base.fingerprint() + hashlib.sha256(self._rows.numpy().tobytes()).hexdigest()


class Changed:
    """Other samples whose inputs are changed when a batch is fetched.

    Args:
        base: the samples.
        change: takes the inputs of a batch and its rows, int64 [B], and returns inputs of the same form.
        name: what the change is, for `fingerprint`.
    """

    def __init__(self, base: Samples, change: Callable[[Tree, Tensor], Tree], name: str) -> None:
        self._base, self._change, self._name = base, change, name
        self.targets = base.targets

    def __len__(self) -> int:
        return len(self._base)

    def targets_of(self, rows: Tensor) -> Tree:
        """Return the targets of some of its samples; see `sparsify.parts.samples.targets_of`."""
        return targets_of(self._base, rows)

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        found = self._base.batch(rows, seed=seed)
        return found._replace(inputs=self._change(found.inputs, rows))

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self._name} {self._base.fingerprint()}".encode()).hexdigest()
