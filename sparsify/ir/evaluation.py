"""The eval phase run over samples: named outputs of all of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from sparsify.ir.binding import arguments_of
from sparsify.ir.program import Program
from sparsify.parts.samples import Samples
from sparsify.parts.trees import moved


def outputs_over(
    program: Program, samples: Samples, *, names: Collection[str] | None = None, batch_size: int = 256
) -> dict[str, Any]:
    """Outputs of the eval phase over all samples, in batches, by name, on the CPU.

    Args:
        program: in any mode, which stays; it runs on the device of its parameters.
        samples: whose inputs it takes.
        names: of the outputs to keep; None: all.
        batch_size: samples of a forward pass.

    Returns:
        Tensors [N, ...]. An output without a batch is averaged over the batches; what is no tensor is that of the last batch.
    """
    parts: dict[str, list[Any]] = {}
    device = next(program.parameters()).device
    with torch.no_grad():
        for rows in torch.arange(len(samples)).split(batch_size):
            args, kwargs = arguments_of(moved(samples.batch(rows).inputs, device))
            for name, value in program.outputs(*args, **kwargs).items():
                if names is None or name in names:
                    parts.setdefault(name, []).append(value.cpu() if isinstance(value, Tensor) else value)
    return {name: _joined(values) for name, values in parts.items()}


def _joined(values: list[Any]) -> Any:
    if not isinstance(values[0], Tensor):
        return values[-1]
    return torch.cat(values) if values[0].ndim else torch.stack(values).double().mean().to(values[0].dtype)
