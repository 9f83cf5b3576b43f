"""Times each layer in ONNX Runtime in each of its forms: fp32 or int8, dense or grouped.

A layer is extracted from the exported model of that form. In int8, its input and output are integers, as they are between two quantized
layers. The cost of conversion between integers and floating point is included when whole models are timed (`sparsify.exporters.int8`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from sparsify.exporters.graphs import leaves, reroute, watched
from sparsify.exporters.grouped_linears import find_grouped_linears
from sparsify.exporters.int8_dense import dense_int8, dense_layers, in_groups, products
from sparsify.exporters.int8_grouped import write_grouped_int8
from sparsify.exporters.skeleton import Written
from sparsify.timing import Array, Feeds, session_of, times

ROUNDS = 9
Cut = tuple[str, str]
"""Names of the input and the output tensor of a layer."""
Timed = tuple[ir.Model, Feeds]


def time_layers(
    models: Mapping[str, ir.Model],
    timed: Feeds,
    *,
    written: Written = lambda model: model,
    threads: int,
) -> dict[str, dict[str, float]]:
    """Return milliseconds by weight name and form, for each layer with more than one of these forms.

    The forms are ``fp32 dense``, ``int8 dense``, ``fp32 grouped`` and ``int8 grouped``.

    Args:
        models: fp32 models of one program: ``dense``, and ``grouped`` if that differs.
        timed: inputs of one call of the models.
        written: transformation of a model before it is written.
        threads: number of threads for timing.
    """
    forms: dict[str, dict[str, Timed]] = {}
    for kind, model in models.items():
        quantized = {name: node for node, name in dense_layers(model).items()}
        linear, found = {layer.name: layer for layer in find_grouped_linears(model.graph)}, _layers(model)
        kept = {w: cut for w, cut in found.items() if kind == "dense" or w in linear or w not in quantized}
        values = _values(model, [start for start, _ in kept.values()], timed)
        for weight, (start, end) in kept.items():
            part, given = _cut(model, start, end, values[start]), {start: values[start]}
            parts = forms.setdefault(weight, {})
            parts[f"fp32 {kind}"] = part, given
            if kind == "grouped" and weight in linear:
                observed = {start: [values[start]], end: [_values(part, [end], given)[end]]}
                exact = {end} if leaves(linear[weight].result) else set[str]()
                integers = write_grouped_int8(part, None, observed, exact=exact)
                parts["int8 grouped"] = _inside(integers, given)
            elif kind == "dense" and weight in quantized:
                parts["int8 dense"] = _inside(dense_int8(part, [given], {quantized[weight]}), given)
    cut = {
        weight: {form: (written(part), given) for form, (part, given) in parts.items()}
        for weight, parts in forms.items()
        if len(parts) > 1
    }
    return {weight: times(parts, threads=threads, rounds=ROUNDS) for weight, parts in cut.items()}


def _layers(model: ir.Model) -> dict[str, Cut]:
    """Return the input and output tensor of each layer that computes one product, by weight name."""
    found = {
        layer.name: (str(layer.source.name), str(layer.result.name)) for layer in find_grouped_linears(model.graph)
    }
    for node, name, weight in products(model.graph):
        start = node.inputs[0]
        if name in found or start is None or node.outputs[0].is_graph_output():
            continue
        before = start.producer()
        if in_groups(node, weight) and before is not None and before.op_type == "Gather":
            start = before.inputs[0]
        found[name] = str(start and start.name), str(node.outputs[0].name)
    return found


def _cut(model: ir.Model, start: str, end: str, given: Array) -> ir.Model:
    """Return the part of a model between two tensors, with all sizes fixed to those of ``given``."""
    graph = ir.convenience.extract(model.graph, [start], [end])
    sizes = dict(zip(graph.inputs[0].shape or (), given.shape, strict=False))
    _sized(graph.inputs[0], given)
    for value in (value for node in graph for value in node.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([size if isinstance(size, int) else sizes.get(size) for size in value.shape])
    return ir.Model(graph, ir_version=model.ir_version)


def _sized(value: ir.Value, given: Array) -> None:
    value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(given.dtype)), ir.Shape(given.shape)


def _values(model: ir.Model, names: list[str], given: Feeds) -> dict[str, Array]:
    """Compute the named tensors of a model, and return them together with its inputs."""
    made = list(dict.fromkeys(name for name in names if name not in given))
    found = session_of(watched(model, made), threads=1).run(made, dict(given)) if made else []
    return {**given, **{name: np.asarray(value) for name, value in zip(made, found, strict=True)}}


def _inside(model: ir.Model, given: Feeds) -> Timed:
    """Remove the first quantization and the last dequantization from the model, in place. Return it with random integer inputs."""
    graph, (start,), (end,) = model.graph, model.graph.inputs, model.graph.outputs
    first = next(use.node for use in start.uses() if use.node.op_type == "QuantizeLinear")
    values = np.random.default_rng(0).integers(0, 256, given[str(start.name)].shape, np.uint8)
    source = ir.Value(name=first.outputs[0].name)
    _sized(source, values)
    reroute(first.outputs[0], source, [use.node for use in first.outputs[0].uses()])
    graph.remove(first)
    graph.inputs[:] = [source]
    if (last := end.producer()) is not None and last.op_type == "DequantizeLinear":
        graph.outputs[:] = [value for value in last.inputs[:1] if value is not None]
        graph.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        graph.remove(last)
    return model, {str(source.name): values}
