"""A file without its weights: what can be learned from shapes is learned from this, at no cost in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable

import onnx
from onnx import helper

MOST = 1024
"""Numbers of a constant up to which it is kept: shapes, axes and indices that decide on shapes."""


Written = Callable[[onnx.ModelProto], onnx.ModelProto]
"""What a file becomes before it is written; trials time that."""


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large constants are inputs of their type and shape; its own inputs come first."""
    graph = model.graph
    made = onnx.ModelProto(ir_version=model.ir_version)
    made.opset_import.extend(model.opset_import)
    made.functions.extend(model.functions)
    made.graph.name = graph.name
    made.graph.node.extend(graph.node)
    made.graph.input.extend(graph.input)
    made.graph.output.extend(graph.output)
    made.graph.value_info.extend(graph.value_info)
    made.graph.sparse_initializer.extend(graph.sparse_initializer)
    for item in graph.initializer:
        count = 1
        for size in item.dims:
            count *= size
        if count <= MOST:
            made.graph.initializer.append(item)
        else:
            made.graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, list(item.dims)))
    return made


def inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    """Nodes, inputs and outputs of a file with the types and shapes of all tensors that can be inferred.

    Files that differ only in the values of their weights share the result, which is inferred once. Do not change it.
    """
    return _inferred(skeleton(model).SerializeToString(deterministic=True))


@functools.lru_cache(maxsize=32)
def _inferred(skeleton: bytes) -> onnx.GraphProto:
    return onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(skeleton)).graph
