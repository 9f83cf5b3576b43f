"""Grouped linear layers as convolutions of width 1 over the batch: bias and ReLU are computed with the product of a group.

A batched `MatMul` leaves both to operators that read and write every activation once more; with a `Conv` runtimes fuse them. It is done to
the graph last, and not by a pass, because int8 forms are written from the products.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsify.exporters.graphs import Writer
from sparsify.exporters.grouped_linears import GroupedLinear, find_grouped_linears
from sparsify.timing import Array


def fuse_products(graph: ir.Graph) -> bool:
    """Write grouped linear layers as `Gather`, `Conv` in groups, and `Relu` where they end in one.

    Layers of one group, whose product runtimes fuse as it is, and those that read inputs in chunks stay.
    """
    layers = [layer for layer in find_grouped_linears(graph) if _fits(layer)]
    for layer in layers:
        _fuse(graph, layer)
    return bool(layers)


def _fits(layer: GroupedLinear) -> bool:
    if layer.table is None or layer.chunk > 1 or len(layer.weight) == 1:
        return False
    return len(layer.matrix.uses()) == len(layer.table.uses()) == 1


def _fuse(graph: ir.Graph, layer: GroupedLinear) -> None:
    """The layer over [1, channels, N], and its result as [G * O, N] again."""
    assert layer.table is not None
    assert layer.index is not None
    groups, rows, kept = layer.weight.shape
    write, name = Writer(layer.nodes[0], graph), layer.result.name
    _set(layer.table, layer.index.reshape(1, -1))
    _set(layer.matrix, layer.weight.reshape(groups * rows, kept, 1))
    inputs = [
        write.call("Gather", [layer.source, layer.table], f"{name}_inputs", like=layer.result, axis=0),
        layer.matrix,
    ]
    if layer.bias is not None:
        inputs.append(write.constant(f"{name}_bias", layer.bias.astype(np.float32)))
    made = write.call("Conv", inputs, f"{name}_sums", like=layer.result, group=groups, kernel_shape=[1])
    if layer.rectified:
        made = write.call("Relu", [made], f"{name}_rectified", like=layer.result)
    shape = write.constant(f"{name}_rows", np.array([groups * rows, -1], np.int64))
    write.replace(layer.result, write.call("Reshape", [made, shape], f"{name}_reshaped"))


def _set(value: ir.Value, array: Array) -> None:
    value.const_value = ir.tensor(array, name=value.name)
