"""Each layer in each of its forms, timed in ONNX Runtime: fp32 or int8, dense or grouped.

A layer is cut out of the exported file of that form. In int8 it reads and makes integers, as between other layers in integers; what
changing between integers and floating point costs is seen where whole files are timed (`sparsify.exporters.int8`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.utils import Extractor

from sparsify.exporters.graphs import leaves, reading
from sparsify.exporters.grouped_linears import grouped_layers
from sparsify.exporters.int8_dense import dense_int8, dense_layers, in_groups, products
from sparsify.exporters.int8_grouped import write_grouped_int8
from sparsify.exporters.skeleton import Written, inferred
from sparsify.timing import Array, Feeds, session_of, times

ROUNDS = 9
Cut = tuple[str, str]
"""First and last tensor of a layer."""
Timed = tuple[onnx.ModelProto, Feeds]


def time_layers(
    models: Mapping[str, onnx.ModelProto],
    timed: Feeds,
    *,
    written: Written = lambda model: model,
    threads: int,
) -> dict[str, dict[str, float]]:
    """Milliseconds of every layer by form: ``fp32 dense``, ``int8 dense``, ``fp32 grouped``, ``int8 grouped``; those that it has.

    Args:
        models: fp32 files of one program: ``dense``, and ``grouped`` where that differs.
        timed: inputs of the call of the files.
        written: what a file becomes before it is written.
        threads: of the trial.
    """
    forms: dict[str, dict[str, Timed]] = {}
    for kind, model in models.items():
        quantized = {name: node for node, name in dense_layers(model).items()}
        linear, found = {layer.name: layer for layer in grouped_layers(model)}, _layers(model)
        kept = {w: cut for w, cut in found.items() if kind == "dense" or w in linear or w not in quantized}
        values, extractor = _values(model, [start for start, _ in kept.values()], timed), Extractor(model)
        extractor.value_infos |= {value.name: value for value in inferred(model).value_info}
        for weight, (start, end) in kept.items():
            part = extractor.extract_model([start], [end])
            given = {start: values[start]}
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
        weight: {form: (written(_of_size(part, given)), given) for form, (part, given) in parts.items()}
        for weight, parts in forms.items()
        if len(parts) > 1
    }
    return {weight: times(parts, threads=threads, rounds=ROUNDS) for weight, parts in cut.items()}


def _of_size(model: onnx.ModelProto, given: Feeds) -> onnx.ModelProto:
    """The part with the sizes of what it is given, so that it is written for this batch only."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in result.graph.input:
        for place, size in zip(value.type.tensor_type.shape.dim, given[value.name].shape, strict=True):
            place.dim_value = size
    for value in result.graph.output:
        value.type.tensor_type.ClearField("shape")
    del result.graph.value_info[:]
    return result


def _layers(model: onnx.ModelProto) -> dict[str, Cut]:
    """Weight -> first and last tensor, of layers that compute one product."""
    found = {layer.name: (str(layer.source.name), str(layer.result.name)) for layer in grouped_layers(model)}
    with reading(model) as whole:
        for node, name, weight in products(whole.graph):
            start = node.inputs[0]
            if name in found or start is None or node.outputs[0].is_graph_output():
                continue
            before = start.producer()
            if in_groups(node, weight) and before is not None and before.op_type == "Gather":
                start = before.inputs[0]
            found[name] = str(start and start.name), str(node.outputs[0].name)
    return found


def _values(model: onnx.ModelProto, names: list[str], given: Feeds) -> dict[str, Array]:
    """Tensors of a file."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    inputs, outputs = {v.name for v in model.graph.input}, {v.name for v in model.graph.output}
    names = list(dict.fromkeys(names))
    made = [name for name in names if name not in inputs]
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made if name not in outputs)
    found = dict(zip(made, session_of(watched, threads=1).run(made, dict(given)), strict=True)) if made else {}
    return {name: np.asarray(given[name] if name in given else found[name]) for name in names}


def _inside(model: onnx.ModelProto, given: Feeds) -> Timed:
    """The part behind the first quantization, and before a last one that is undone; and integers for it."""
    graph, (start,), (end,) = model.graph, model.graph.input, model.graph.output
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == start.name)
    last = next((n for n in graph.node if n.op_type == "DequantizeLinear" and n.output[0] == end.name), None)
    shape = given[start.name].shape
    source = helper.make_tensor_value_info(first.output[0], TensorProto.UINT8, shape)
    result = helper.make_tensor_value_info(last.input[0], TensorProto.UINT8, None) if last is not None else end
    nodes = [node for node in graph.node if node is not first and node is not last]
    part = helper.make_graph(nodes, "layer", [source], [result], graph.initializer)
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    made = helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
    return made, {source.name: values}
