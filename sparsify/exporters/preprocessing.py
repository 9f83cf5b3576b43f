"""From stored values, such as the bytes of a picture, to inputs of a program: described in a file, or computed by it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from sparsify.arguments import checked, checked_fields
from sparsify.errors import ExportError
from sparsify.exporters.graphs import Writer, reroute
from sparsify.ir import Program
from sparsify.ir.heads import head_metadata
from sparsify.passes.scale_prediction import scale_row

INPUT_TYPES = ("float", "uint8")
LAYOUTS = ("NCHW", "NHWC")


@checked_fields(ExportError)
@dataclass(frozen=True)
class Preprocessing:
    """The step from stored values to the inputs of a program: ``(stored / scale - mean) / std`` per channel.

    Attributes:
        mean: subtracted after the scaling, one value per channel or one for all.
        std: divided by, one value per channel or one for all; above 0.
        scale: what stored values are divided by first: 255 for bytes, 1 for numbers whose range is not known.
        layout: how a file that takes bytes wants images of four dimensions: ``NCHW`` as the program, or ``NHWC`` as image libraries store
            them. A file that takes floats always has the layout of the program.

    Raises:
        ExportError: If a value is out of range, or the numbers of channels differ.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> sp.Preprocessing(mean=(0.5,), std=(0.5,)).inputs(torch.tensor([[0, 255]], dtype=torch.uint8))
        tensor([[-1.,  1.]])
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 255.0
    layout: str = "NCHW"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if not values or not np.isfinite(values).all():
                raise ExportError(f"{name} of the preprocessing should hold finite numbers, found {values}.")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0 or not 0 < self.scale < float("inf"):
            raise ExportError(
                f"std and scale of the preprocessing should be above 0, found std {self.std} and scale {self.scale}."
            )
        if 1 not in (len(self.mean), len(self.std)) and len(self.mean) != len(self.std):
            raise ExportError(
                f"mean has {len(self.mean)} channels and std {len(self.std)}; give as many of both, or one for all."
            )
        if self.layout not in LAYOUTS:
            raise ExportError(f"layout should be one of {', '.join(LAYOUTS)}, found {self.layout!r}.")

    @checked(ExportError)
    def inputs(self, stored: Tensor) -> Tensor:
        """Inputs of the program, float32 [N, C, ...], from stored values of this layout."""
        if self._channels_last(stored.ndim):
            stored = stored.permute(0, 3, 1, 2)
        mean, std = self._columns(stored.ndim)
        return (stored.float() / self.scale - mean) / std

    @checked(ExportError)
    def stored(self, inputs: Tensor) -> Tensor:
        """The bytes nearest to inputs of the program [N, C, ...], uint8 of this layout."""
        mean, std = self._columns(inputs.ndim)
        values = ((inputs.float() * std + mean) * self.scale).round().clamp(0, 255).to(torch.uint8)
        return values.permute(0, 2, 3, 1).contiguous() if self._channels_last(values.ndim) else values

    def metadata(self, program: Program, input_type: str) -> dict[str, str]:
        """What a file says about its input: type, layout, range of values, and the preprocessing that is left to its user."""
        rank = len(program.input_specs[0].shape)
        described = {
            "input_type": "uint8" if input_type == "uint8" else "float32",
            "mean": json.dumps(self.mean),
            "std": json.dumps(self.std),
            "scale": repr(self.scale),
            "preprocessing": "in the graph" if input_type == "uint8" else "(x / scale - mean) / std, by the caller",
        }
        if input_type == "uint8" or self.scale != 1:
            described["value_range"] = json.dumps((0.0, 255.0) if input_type == "uint8" else self._range())
        if rank == 4:
            described["layout"] = self.layout if input_type == "uint8" else "NCHW"
        return described

    def check(self, program: Program) -> None:
        """Refuse a program whose input is not what this makes.

        Raises:
            ExportError: If there are several inputs, the input is not float32, or has another number of channels.
        """
        if len(program.input_specs) != 1:
            names = ", ".join(spec.name for spec in program.input_specs)
            raise ExportError(
                f"preprocessing is for programs of one input; {program.name!r} takes {names}. Export it without one."
            )
        spec, channels = program.input_specs[0], max(len(self.mean), len(self.std))
        if spec.dtype != "float32" or len(spec.shape) < 2:
            raise ExportError(
                f"preprocessing makes float32 inputs [N, C, ...]; {spec.name!r} is {spec.dtype}{list(spec.shape)}. Export it without one."
            )
        if channels not in (1, spec.shape[1]):
            raise ExportError(
                f"the preprocessing has {channels} channels, input {spec.name!r} has {spec.shape[1]} of shape {list(spec.shape)}. "
                f"Give one mean and std per channel, or one for all."
            )
        if self.layout == "NHWC" and len(spec.shape) != 4:
            raise ExportError(f"layout NHWC is for images; input {spec.name!r} has shape {list(spec.shape)}. Use NCHW.")

    def bake(self, graph: ir.Graph) -> None:
        """Make this the first nodes of a file, which then takes uint8; in place."""
        given = graph.inputs[0]
        assert given.shape is not None
        name, rank = str(given.name), len(given.shape)
        write, readers = Writer(graph[0], graph), [use.node for use in given.uses()]
        taken = ir.convenience.create_value_mapping(graph)

        def new(suffix: str) -> str:
            return next(
                found for count in itertools.count() if (found := f"{name}_{suffix}" + "_" * count) not in taken
            )

        ready = write.call("Cast", [given], new("float"), to=ir.DataType.FLOAT.value)
        if self._channels_last(rank):
            given.shape = ir.Shape([given.shape[place] for place in (0, 2, 3, 1)])
            ready = write.call("Transpose", [ready], new("nchw"), perm=(0, 3, 1, 2))
        mean, std = (value.double() for value in self._columns(rank))
        factor, shift = 1 / (self.scale * std), -mean / std
        steps = [("Mul", factor, "scaled"), ("Add", shift, "ready")] if shift.any() else [("Mul", factor, "ready")]
        for operator, values, suffix in steps:
            constant = write.constant(new(operator.lower()), values.float().numpy())
            ready = write.call(operator, [ready, constant], new(suffix))
        reroute(given, ready, readers)
        given.type = ir.TensorType(ir.DataType.UINT8)

    def _channels_last(self, rank: int) -> bool:
        return self.layout == "NHWC" and rank == 4

    def _columns(self, rank: int) -> tuple[Tensor, Tensor]:
        """Mean and std as [1, C, 1, ...]."""
        shape = (1, -1, *(1,) * (rank - 2))
        return torch.tensor(self.mean).view(shape), torch.tensor(self.std).view(shape)

    def _range(self) -> tuple[float, float]:
        """The lowest and highest input that a byte can give, over all channels."""
        ends = [(value / self.scale - np.array(self.mean)) / np.array(self.std) for value in (0.0, 255.0)]
        return float(ends[0].min()), float(ends[1].max())


def described(
    program: Program,
    *,
    preprocessing: Preprocessing | None,
    input_type: str,
    classes: Sequence[str],
    task: str | None,
) -> Mapping[str, str]:
    """Metadata that tells how to feed a file and how to read its outputs.

    ``prediction_scale`` is that of `ScalePrediction`, ``calibration`` the name of the calibration head.

    Raises:
        ExportError: If the type of the input is unknown, or needs a preprocessing that is not given or does not fit.
    """
    if input_type not in INPUT_TYPES:
        raise ExportError(f"the type of the input should be one of {', '.join(INPUT_TYPES)}, found {input_type!r}.")
    if input_type == "uint8" and preprocessing is None:
        raise ExportError(
            "a file that takes uint8 computes the preprocessing of its inputs, and none is given: the data say nothing of a scale, "
            "mean and deviation. Give preprocessing=Preprocessing(...), or export with input type float."
        )
    found = {"inputs": json.dumps([spec.name for spec in program.input_specs])}
    if preprocessing is not None:
        preprocessing.check(program)
        found |= preprocessing.metadata(program, input_type)
    if classes:
        found["classes"] = json.dumps([str(name) for name in classes])
    found |= {f"prediction_{key}": json.dumps(value) for key, value in scale_row(program).items()}
    return found | head_metadata(program) | ({"task": task} if task else {})


def together(*parts: Mapping[str, str]) -> dict[str, str]:
    """The entries of a file's metadata, of which none may take the place of another.

    Raises:
        ExportError: If two parts have a key with different values.
    """
    found: dict[str, str] = {}
    for key, value in itertools.chain.from_iterable(part.items() for part in parts):
        if found.setdefault(key, value) != value:
            raise ExportError(
                f"the metadata have {key!r} twice, as {found[key][:60]!r} and as {value[:60]!r}, and the file keeps one. The export "
                f"writes it itself: give metadata another key."
            )
    return found
