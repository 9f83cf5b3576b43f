"""Dense or grouped, measured: each layer in both forms in ONNX Runtime on this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from sparsify.deployment.packing import Packing, best_packing
from sparsify.exporters.skeleton import Written
from sparsify.ir import Program, TensorSpec
from sparsify.ir.dimensions import BATCH, value_of
from sparsify.ir.layers import Layer, layers, tensor_of
from sparsify.timing import Feeds, times

FORMS = ("dense", "grouped")
SECONDS = 0.001
"""How long the faster form is timed: there are many layers."""


@dataclass(frozen=True)
class Trial:
    """Microseconds a call of one layer in both forms, medians of interleaved rounds."""

    dense: float
    grouped: float

    def __str__(self) -> str:
        return f"{self.grouped:.0f} µs grouped, {self.dense:.0f} µs dense, measured"


def measure_layers(
    program: Program,
    *,
    written: Written = lambda model: model,
    sizes: Mapping[str, int] | None = None,
    threads: int = 1,
) -> dict[str, Trial]:
    """Time every convolution and linear layer of the eval phase that leaves out inputs.

    A convolution is timed after a depthwise one, so that leaving and re-entering the blocked layout is paid for as in a network; a linear
    layer in the feature-major form of a chain.

    Args:
        program: of stage DEPLOYED, not lowered.
        written: what a file becomes before it is written.
        sizes: of a call, by dimension that the program leaves open; others are those of the example, and the batch is 1.
        threads: of a session.
    """
    found: dict[str, Trial] = {}
    for layer in layers(program):
        spec = layer.input.meta.get("spec")
        if layer.weight.op != "get_attr" or layer.groups > 1 or not isinstance(spec, TensorSpec):
            continue
        values = tensor_of(program, layer.weight).cpu()
        packing = best_packing(values, force=True)[0] if values.ndim in (2, 4) else None
        if packing is None:
            continue
        given = _sized(spec, {**program.sizes, BATCH: 1, **(sizes or {})})
        models = _convolutions(layer, values, packing, given) if layer.is_conv else _products(values, packing, given)
        timed = {form: (written(model), _feeds(shape)) for form, (model, shape) in zip(FORMS, models, strict=True)}
        taken = times(timed, threads=threads, seconds=SECONDS)
        found[str(layer.weight.target)] = Trial(*(1000 * taken[form] for form in FORMS))
    return found


def _sized(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(value_of(size, sizes) or sizes[BATCH] for size in spec.shape)


Model = tuple[ir.Model, tuple[int, ...]]


def _convolutions(layer: Layer, weight: Tensor, packing: Packing, shape: tuple[int, ...]) -> tuple[Model, Model]:
    options = {"strides": layer.spatial("stride"), "pads": layer.pads, "dilations": layer.spatial("dilation")}
    before = "Conv", torch.ones(shape[1], 1, 1, 1), {"group": shape[1]}
    return _model(shape, before, ("Conv", weight, options)), _model(
        shape,
        before,
        ("Gather", packing.inputs.flatten(), {"axis": 1}),
        ("Conv", packing.values(weight).flatten(0, 1), {"group": packing.groups, **options}),
    )


def _products(weight: Tensor, packing: Packing, given: tuple[int, ...]) -> tuple[Model, Model]:
    """Feature-major: [F, N], or [N, F, S] of tokens."""
    lead: tuple[int, ...] = given[: len(given) - 2][:1]
    columns = math.prod(given[len(lead) : -1])
    groups, kept = packing.inputs.shape
    inputs, outputs, chunk = weight.shape[1], weight.shape[0], packing.chunk
    shape = (*lead, inputs, columns)
    dense = _model(shape, ("MatMul", weight, {}))
    if lead:
        packed = packing.values(weight).flatten(0, 1)[..., None]
        selection = "Gather", packing.inputs.flatten(), {"axis": 1}
        return dense, _model(shape, selection, ("Conv", packed, {"group": groups}))
    return dense, _model(
        shape,
        ("Reshape", torch.tensor([inputs // chunk, -1]), {}),
        ("Gather", packing.inputs.reshape(-1, chunk)[:, 0] // chunk, {"axis": 0}),
        ("Reshape", torch.tensor([groups, kept, -1]), {}),
        ("MatMul", packing.values(weight), {}),
        ("Reshape", torch.tensor([outputs, -1]), {}),
    )


def _model(shape: tuple[int, ...], *steps: tuple[str, Tensor, Mapping[str, Any]]) -> Model:
    """A file of operators one after the other, each with a constant: on the left of a `MatMul`, else on the right."""
    tape, given = ir.tape.Tape(), ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
    value = given
    for place, (kind, array, options) in enumerate(steps):
        constant = tape.initializer(ir.tensor(array.contiguous().numpy(), name=f"constant_{place}"))
        value = tape.op(kind, [constant, value] if kind == "MatMul" else [value, constant], options)
    value.type = given.type
    graph = ir.Graph(
        [given], [value], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": 18}, name="layer"
    )
    return ir.Model(graph, ir_version=9), shape


def _feeds(shape: tuple[int, ...]) -> Feeds:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
