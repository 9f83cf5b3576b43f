"""Quantizes dense layers, including those with channels removed, to int8 in QDQ format.

ONNX Runtime's static quantizer inserts `QuantizeLinear` and `DequantizeLinear` nodes around each layer, with ranges observed on
calibration data; runtimes fuse them into integer kernels. Weights have 7 bits and one scale per output channel, because 8-bit weights
overflow the 16-bit accumulators of processors without int8 dot products.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime import quantization

from sparsify.errors import ExportError
from sparsify.exporters.graphs import constant, without_shapes
from sparsify.exporters.grouped_linears import find_grouped_linears, weight_name
from sparsify.ir.heads import PREFIX
from sparsify.timing import Array, Batches

FOLLOWERS = ("Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Concat")
"""Operators that are quantized if all their inputs are."""


def dense_layers(model: ir.Model) -> dict[str, str]:
    """Return the nodes that the static quantizer may quantize, each with the name of its weight.

    These are convolutions and matrix products with a constant float32 weight, except three kinds: grouped linear layers, which
    `sparsify.exporters.int8_grouped` quantizes; outputs of the file, because int8 would clip them to the range observed in calibration;
    and grouped convolutions that are not depthwise, which are slower in int8.
    """
    grouped = {node for layer in find_grouped_linears(model.graph) for node in layer.nodes}
    return {
        str(node.name): name
        for node, name, weight in products(model.graph)
        if node not in grouped
        and not node.outputs[0].is_graph_output()
        and weight.dtype == np.float32
        and not in_groups(node, weight)
        and (node.op_type != "MatMul" or weight.ndim == 2)
    }


def products(graph: ir.Graph) -> Iterator[tuple[ir.Node, str, Array]]:
    """Yield convolutions and matrix products with constant weights, in graph order: node, name of the weight in the program, values.

    The calibration head is left out: it computes in fp32, and its values are fitted again to the file that they are part of.
    """
    for node in graph:
        weight = constant(node.inputs[1]) if node.op_type in ("Conv", "Gemm", "MatMul") else None
        if weight is None:
            continue
        name = weight_name(str(node.inputs[1].name))  # type: ignore[union-attr]
        if not name.startswith(PREFIX):
            yield node, name, weight


def in_groups(node: ir.Node, weight: Array) -> bool:
    """Return whether a node is a grouped convolution, but not a depthwise one."""
    groups = node.attributes.get_int("group", 1)
    return node.op_type == "Conv" and groups > 1 and groups != weight.shape[0]


def dense_int8(model: ir.Model, calibration: Batches, layers: Collection[str] | None = None) -> ir.Model:
    """Return a copy of ``model`` with its dense layers, and the operators between them, quantized.

    Args:
        model: an fp32 model, or one whose grouped layers are already quantized.
        calibration: batches of samples on which the minimum and maximum of each tensor are observed.
        layers: names of nodes in `dense_layers` to quantize; None: all of them.

    Raises:
        ExportError: If ONNX Runtime's quantizer fails on the model.
    """
    chosen = _with_followers(model, set(dense_layers(model) if layers is None else layers))
    with tempfile.TemporaryDirectory() as folder, _Silence():
        path = Path(folder) / "int8.onnx"
        try:
            quantization.quantize_static(
                ir.to_proto(model),  # the quantizer moves the weights of its argument into external files
                path,
                _Reader(calibration),
                op_types_to_quantize=["Conv", "Gemm", "MatMul", *FOLLOWERS],
                nodes_to_quantize=chosen,
                per_channel=True,
                reduce_range=True,
                weight_type=quantization.QuantType.QInt8,
                activation_type=quantization.QuantType.QUInt8,
            )
        except Exception as error:
            raise ExportError(
                f"ONNX Runtime's quantizer failed: {(str(error).splitlines() or [type(error).__name__])[0]}. "
                f"Export with precision='fp32'."
            ) from error
        made = ir.from_proto(onnx.load(path))
        without_shapes(made.graph)
        return made


def _with_followers(model: ir.Model, layers: set[str]) -> list[str]:
    """Return the names of the layers, and of the `FOLLOWERS` that read only outputs of chosen nodes."""
    made, chosen = set[ir.Value](), list[str]()
    for node in model.graph:
        read = [value for value in node.inputs if value is not None and constant(value) is None]
        follows = node.op_type in FOLLOWERS and not node.outputs[0].is_graph_output() and made.issuperset(read)
        if node.name in layers or (follows and (node.op_type != "Add" or len(read) == 2)):
            chosen.append(str(node.name))
            made.update(node.outputs)
    return chosen


class _Reader(quantization.CalibrationDataReader):
    def __init__(self, batches: Batches) -> None:
        self._feeds = iter(batches)

    def get_next(self) -> dict[str, Array] | None:  # type: ignore[override]
        feeds = next(self._feeds, None)
        return None if feeds is None else dict(feeds)


class _Silence:
    """Suppress log messages of the quantizer up to the level of warnings."""

    def __enter__(self) -> None:
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._level)
