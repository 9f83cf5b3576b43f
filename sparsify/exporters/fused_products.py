"""Grouped linear layers as convolutions of width 1 over the batch: bias and ReLU are computed with the product of a group.

A batched `MatMul` leaves both to operators that read and write every activation once more; with a `Conv` runtimes fuse them. It is done to
the graph last, and not by a pass, because int8 forms are written from the products.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sparsify.exporters.grouped_linears import GroupedLinear, View, find_grouped_linears
from sparsify.timing import Array


def fused_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """The file with its grouped linear layers as `Gather`, `Conv` in groups, and `Relu` where they end in one.

    Layers of one group, whose product runtimes fuse as it is, and those that read inputs in chunks stay.
    """
    view = View(model)
    layers = [layer for layer in find_grouped_linears(model) if _fits(view, layer)]
    if not layers:
        return model
    last, replaced = (
        {id(layer.nodes[-1]): layer for layer in layers},
        {id(node) for layer in layers for node in layer.nodes},
    )
    nodes, constants = list[onnx.NodeProto](), dict[str, Array]()
    for node in model.graph.node:
        if id(node) in last:
            nodes.extend(_written(last[id(node)], constants))
        elif id(node) not in replaced:
            nodes.append(node)
    read = {name for node in nodes for name in node.input}
    same = {name for node in model.graph.node if id(node) not in replaced for name in node.output}
    same |= {layer.result for layer in layers}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(i for i in model.graph.initializer if i.name in read and i.name not in constants)
    result.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    result.graph.value_info.extend(value for value in model.graph.value_info if value.name in same)
    return result


def _fits(view: View, layer: GroupedLinear) -> bool:
    if layer.index is None or layer.chunk > 1 or len(layer.weight) == 1:
        return False
    selection, product = _parts(layer)
    return all(len(view.readers[name]) == 1 for name in (selection.input[1], product.input[0]))


def _parts(layer: GroupedLinear) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """Its selection and its product."""
    selection, product = (next(n for n in layer.nodes if n.op_type == kind) for kind in ("Gather", "MatMul"))
    return selection, product


def _written(layer: GroupedLinear, constants: dict[str, Array]) -> list[onnx.NodeProto]:
    """The layer over [1, channels, N], and its result as [G * O, N] again."""
    assert layer.index is not None
    groups, rows, kept = layer.weight.shape
    selection, product = _parts(layer)
    table, weight, name = selection.input[1], product.input[0], layer.result
    constants[table] = layer.index.reshape(1, -1)
    constants[weight] = layer.weight.reshape(groups * rows, kept, 1)
    constants[f"{name}_rows"] = np.array([groups * rows, -1], np.int64)
    inputs = [selection.output[0], weight]
    if layer.bias is not None:
        constants[f"{name}_bias"] = layer.bias.astype(np.float32)
        inputs.append(f"{name}_bias")
    nodes = [
        helper.make_node("Gather", [layer.source, table], [selection.output[0]], name=selection.name, axis=0),
        helper.make_node("Conv", inputs, [f"{name}_sums"], name=f"{name}_conv", group=groups, kernel_shape=[1]),
    ]
    if layer.rectified:
        nodes.append(helper.make_node("Relu", [f"{name}_sums"], [f"{name}_rectified"], name=f"{name}_relu"))
    shape = [nodes[-1].output[0], f"{name}_rows"]
    return [*nodes, helper.make_node("Reshape", shape, [name], name=f"{name}_reshape")]
