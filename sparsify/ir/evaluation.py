"""The eval phase run over samples: named outputs of all of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.binding import Inputs, arguments_of
from sparsify.ir.nodes import TensorSpec
from sparsify.ir.program import Program
from sparsify.ir.traits import named_outputs
from sparsify.parts.samples import Samples
from sparsify.parts.trees import moved


def outputs_over(
    program: Program, samples: Samples, *, names: Collection[str] | None = None, batch_size: int = 256
) -> dict[str, Any]:
    """Outputs of the eval phase over all samples, in batches, by name, on the CPU.

    Args:
        program: in any mode, which stays; it runs on the device of its parameters, or of its buffers where it has none.
        samples: whose inputs it takes.
        names: of the outputs to keep; None: all.
        batch_size: samples of a forward pass.

    Returns:
        Tensors [N, ...]. Where batches have outputs of unlike lengths, as padded sequences have, shorter ones are filled up with 0. An
        output without a batch is averaged over the batches; what is no tensor is that of the last batch.
    """
    parts: dict[str, list[Any]] = {}
    device = next((value.device for value in (*program.parameters(), *program.buffers())), torch.device("cpu"))
    with torch.no_grad():
        for rows in torch.arange(len(samples)).split(batch_size):
            for name, value in outputs_of(program, moved(samples.batch(rows).inputs, device)).items():
                if names is None or name in names:
                    parts.setdefault(name, []).append(value.cpu() if isinstance(value, Tensor) else value)
    return {name: joined(values) for name, values in parts.items()}


def outputs_of(program: Program, inputs: Inputs) -> dict[str, Any]:
    """Named outputs of the eval phase for inputs as data come: a tensor, a tuple of arguments, or a mapping of arguments by name.

    Raises:
        TraceError: If the inputs are not those that the program was traced for.
    """
    args, kwargs = arguments_of(inputs)
    return program.outputs(*args, **kwargs)


def output_shape(program: Program, name: str, found: Tensor) -> tuple[int | str, ...]:
    """The sizes of an output of the eval phase, ``("N", ...)``; one that varies with the inputs is a text, as in the graph.

    Args:
        program: in any mode.
        name: of the output.
        found: its value for some samples, [N, ...], for what the graph does not say.
    """
    leaf = named_outputs(program.output_node("eval")).get(name)
    spec = leaf.meta.get("spec") if isinstance(leaf, fx.Node) else None
    known = spec.shape if isinstance(spec, TensorSpec) and len(spec.shape) == found.ndim else found.shape
    return ("N", *(size if isinstance(size, str) else int(size) for size in known[1:]))


def _filled(value: Tensor, sizes: list[int]) -> Tensor:
    """A tensor [B, ...] padded with zeros at the end of each dimension, to the sizes of a sample."""
    found = value.new_zeros([len(value), *sizes])
    found[tuple(slice(size) for size in value.shape)] = value
    return found


def joined(values: list[Any]) -> Any:
    """Outputs of batches as one of all samples, as `outputs_over` returns them."""
    if not isinstance(values[0], Tensor):
        return values[-1]
    if len({value.shape[1:] for value in values}) > 1:
        sizes = [max(some) for some in zip(*(value.shape[1:] for value in values), strict=True)]
        values = [_filled(value, sizes) for value in values]
    return torch.cat(values) if values[0].ndim else torch.stack(values).double().mean().to(values[0].dtype)
