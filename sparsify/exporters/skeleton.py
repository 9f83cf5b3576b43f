"""A file without its weights: what can be learned from shapes is learned from this, at no cost in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import onnx
import onnx_ir as ir

MOST = 1024
"""Numbers of a constant up to which it is kept: shapes, axes and indices that decide on shapes."""


Written = Callable[[ir.Model], ir.Model]
"""What a file becomes before it is written; trials time that."""


def framed(model: ir.Model, weights: Iterable[ir.Value] = (), inputs: Iterable[ir.Value] = ()) -> onnx.ModelProto:
    """A file with these weights only, and more inputs."""
    graph = model.graph
    view = ir.GraphView(
        (*graph.inputs, *inputs),
        graph.outputs,
        nodes=graph,
        initializers=(*weights,),
        name=graph.name,
        opset_imports=graph.opset_imports,
    )
    frame = ir.Model(
        view,  # pyright: ignore[reportArgumentType]
        ir_version=model.ir_version, producer_name=model.producer_name, producer_version=model.producer_version,
        functions=(*model.functions.values(),), metadata_props={**model.metadata_props},
    )  # fmt: skip
    return ir.to_proto(frame)


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """A file whose large constants are inputs of their type and shape; its own inputs come first."""
    small, large = list[ir.Value](), list[ir.Value]()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if tensor.size <= MOST:
            small.append(value)
        else:
            shape = ir.Shape(tensor.shape.numpy())
            large.append(ir.Value(name=value.name, type=ir.TensorType(tensor.dtype), shape=shape))
    return framed(model, small, large)


def inferred(model: ir.Model) -> onnx.GraphProto:
    """Nodes, inputs and outputs of a file with the types and shapes of all tensors that can be inferred.

    Files that differ only in the values of their weights share the result, which is inferred once. Do not change it.
    """
    return _inferred(skeleton(model).SerializeToString(deterministic=True))


@functools.lru_cache(maxsize=32)
def _inferred(skeleton: bytes) -> onnx.GraphProto:
    return onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(skeleton)).graph
