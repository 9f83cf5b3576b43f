"""Dense or grouped, measured: each layer in both forms in ONNX Runtime on this machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

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
    program: Program, *, written: Written = lambda model: model, batch: int = 1, threads: int = 1
) -> dict[str, Trial]:
    """Time every convolution and linear layer of the eval phase that leaves out inputs.

    A convolution is timed behind a depthwise one, so that leaving and re-entering the blocked layout is paid for as in a network; a linear
    layer in the feature-major form of a chain.

    Args:
        program: of stage DEPLOYED, not lowered.
        written: what a file becomes before it is written.
        batch: samples of a call, where the program leaves it open.
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
        sizes = _sized(program, spec, batch)
        models = _convolutions(layer, values, packing, sizes) if layer.is_conv else _products(values, packing, sizes)
        timed = {form: (written(model), _feeds(shape)) for form, (model, shape) in zip(FORMS, models, strict=True)}
        taken = times(timed, threads=threads, seconds=SECONDS)
        found[str(layer.weight.target)] = Trial(*(1000 * taken[form] for form in FORMS))
    return found


def _sized(program: Program, spec: TensorSpec, batch: int) -> tuple[int, ...]:
    sizes = {**program.sizes, BATCH: batch}
    return tuple(value_of(size, sizes) or batch for size in spec.shape)


Model = tuple[onnx.ModelProto, tuple[int, ...]]


def _convolutions(layer: Layer, weight: torch.Tensor, packing: Packing, shape: tuple[int, ...]) -> tuple[Model, Model]:
    options: dict[str, Any] = {
        "strides": layer.spatial("stride"),
        "pads": layer.pads,
        "dilations": layer.spatial("dilation"),
    }
    before = helper.make_node("Conv", ["x", "ones"], ["h"], group=shape[1])
    tensors = {"ones": np.ones((shape[1], 1, 1, 1), np.float32)}
    dense = _model(
        [before, helper.make_node("Conv", ["h", "w"], ["y"], **options)], {**tensors, "w": weight.numpy()}, shape
    )
    nodes = [
        before,
        helper.make_node("Gather", ["h", "i"], ["g"], axis=1),
        helper.make_node("Conv", ["g", "w"], ["y"], group=packing.groups, **options),
    ]
    packed = packing.values(weight).flatten(0, 1).numpy()
    return (dense, shape), (
        _model(nodes, {**tensors, "w": packed, "i": packing.inputs.flatten().numpy()}, shape),
        shape,
    )


def _products(weight: torch.Tensor, packing: Packing, given: tuple[int, ...]) -> tuple[Model, Model]:
    """Feature-major: [F, N], or [N, F, S] of tokens."""
    lead: tuple[int, ...] = given[: len(given) - 2][:1]
    columns = math.prod(given[len(lead) : -1])
    groups, kept = packing.inputs.shape
    inputs, outputs, chunk = weight.shape[1], weight.shape[0], packing.chunk
    shape = (*lead, inputs, columns)
    dense = _model([helper.make_node("MatMul", ["w", "x"], ["y"])], {"w": weight.numpy()}, shape)
    if lead:
        packed = packing.values(weight).flatten(0, 1)[..., None].numpy()
        nodes = [
            helper.make_node("Gather", ["x", "i"], ["g"], axis=1),
            helper.make_node("Conv", ["g", "w"], ["y"], group=groups),
        ]
        return (dense, shape), (_model(nodes, {"w": packed, "i": packing.inputs.flatten().numpy()}, shape), shape)
    tensors = {
        "w": packing.values(weight).numpy(),
        "i": (packing.inputs.reshape(-1, chunk)[:, 0] // chunk).contiguous().numpy(),
        "lines": np.array([inputs // chunk, -1]),
        "parts": np.array([groups, kept, -1]),
        "flat": np.array([outputs, -1]),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "lines"], ["r"]),
        helper.make_node("Gather", ["r", "i"], ["g"], axis=0),
        helper.make_node("Reshape", ["g", "parts"], ["p"]),
        helper.make_node("MatMul", ["w", "p"], ["m"]),
        helper.make_node("Reshape", ["m", "flat"], ["y"]),
    ]
    return (dense, shape), (_model(nodes, tensors, shape), shape)


def _model(nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], shape: tuple[int, ...]) -> onnx.ModelProto:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "layer", [given], [made], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _feeds(shape: tuple[int, ...]) -> Feeds:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
