"""Run the eval phase over samples and collect its named outputs."""

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
    """Run the eval phase over all samples in batches; returns outputs by name, on the CPU.

    Args:
        program: in any mode, which does not change; it runs on the device of its parameters, or of its buffers if it has none.
        samples: N samples with inputs for the program.
        names: names of the outputs to keep; None: all.
        batch_size: samples per forward pass, at least 1.

    Returns:
        Tensors [N, ...]. If lengths differ between batches, as with padded sequences, shorter outputs are padded with 0. An output
        without a batch dimension is averaged over the batches. A value that is not a tensor is taken from the last batch.
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
    """Run the eval phase on a tensor, a tuple of arguments, or a mapping of arguments by name; returns outputs by name.

    Raises:
        TraceError: If the inputs do not fit those that the program was traced for.
    """
    args, kwargs = arguments_of(inputs)
    return program.outputs(*args, **kwargs)


def output_shape(program: Program, name: str, found: Tensor) -> tuple[int | str, ...]:
    """Return the shape of an output of the eval phase, ``("N", ...)``; a size that varies with the inputs is a text, as in the graph.

    Args:
        program: in any mode.
        name: name of the output.
        found: its value for some samples, [N, ...]; supplies the sizes that the graph does not record.
    """
    leaf = named_outputs(program.output_node("eval")).get(name)
    spec = leaf.meta.get("spec") if isinstance(leaf, fx.Node) else None
    known = spec.shape if isinstance(spec, TensorSpec) and len(spec.shape) == found.ndim else found.shape
    return ("N", *(size if isinstance(size, str) else int(size) for size in known[1:]))


def _filled(value: Tensor, sizes: list[int]) -> Tensor:
    """Pad a tensor [B, ...] with zeros at the end of each dimension; ``sizes`` are those of one sample."""
    found = value.new_zeros([len(value), *sizes])
    found[tuple(slice(size) for size in value.shape)] = value
    return found


def joined(values: list[Any]) -> Any:
    """Join the outputs of batches into one for all samples, as `outputs_over` returns it."""
    if not isinstance(values[0], Tensor):
        return values[-1]
    if len({value.shape[1:] for value in values}) > 1:
        sizes = [max(some) for some in zip(*(value.shape[1:] for value in values), strict=True)]
        values = [_filled(value, sizes) for value in values]
    return torch.cat(values) if values[0].ndim else torch.stack(values).double().mean().to(values[0].dtype)
