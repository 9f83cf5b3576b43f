"""A program's eval phase as an ONNX graph, by torch.onnx: nothing in it names the machine that wrote it."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import re
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from sparsify.errors import ExportError
from sparsify.exporters.graphs import without_shapes
from sparsify.exporters.grouped_linears import MARK, translate
from sparsify.exporters.recurrent import rnn_translations
from sparsify.exporters.shortcuts import shortcuts
from sparsify.exporters.signature import sized, tensor_outputs
from sparsify.exporters.size_ranges import allowed_batches, range_metadata
from sparsify.ir import Program
from sparsify.ir.dimensions import BATCH
from sparsify.ir.grouped_linear import GROUPED_LINEAR
from sparsify.ir.phase import PhaseCall
from sparsify.ir.recurrent_shapes import of_any_length


class _NamedOutputs(nn.Module):
    """The eval phase with flat inputs and all its outputs that are tensors, heads included."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.phase = PhaseCall(program.phases["eval"])
        self.places = [output.place for output in tensor_outputs(program)]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = self.phase(*inputs)
        return tuple(leaves[place] for place in self.places)


def convert(program: Program, inputs: Sequence[Tensor], opset: int) -> ir.Model:
    """The graph of a program; it shares the program's weights.

    Raises:
        ExportError: If torch.onnx cannot convert it.
    """
    kinds = {BATCH: torch.export.Dim("batch", min=1)}
    dynamic: list[dict[int, Any]] = [{} for _ in program.input_specs]
    for place, at, name in program.places:
        if name == BATCH or name in program.sizes:
            dynamic[place][at] = kinds.get(name, torch.export.Dim.DYNAMIC)
    sizes = {**program.sizes} | ({BATCH: allowed_batches(program).nearest(2)} if program.dynamic_batch else {})
    lengths = of_any_length() if {*program.sizes} - {BATCH} else contextlib.nullcontext()
    with quiet(), lengths:
        try:
            exported = _exported(
                _NamedOutputs(program).eval(),
                tuple(sized(program, inputs, sizes)),
                opset_version=opset,
                input_names=[spec.name for spec in program.input_specs],
                output_names=[output.name for output in tensor_outputs(program)],
                dynamic_shapes=(tuple(places or None for places in dynamic),) if any(dynamic) else None,
            )
        except Exception as error:
            raise ExportError(refusal(program, opset, error)) from error
    _name_sizes(program, exported)
    model = clean(exported.model)
    model.metadata_props.update(range_metadata(program))  # trials read it: they run the file in batches
    return model


def _exported(module: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> torch.onnx.ONNXProgram:
    """By torch.onnx, with shortcuts; without them where it fails."""

    def export() -> torch.onnx.ONNXProgram:
        made = torch.onnx.export(
            module, inputs, dynamo=True, custom_translation_table=translations(), verbose=False, **options
        )
        assert made is not None
        return made

    with shortcuts() as taken:
        try:
            return export()
        except Exception:  # whatever the short way raised: the long way below succeeds, or raises what is then reported
            if not taken:
                raise
    return export()


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What operators of this package become in a file: `translate`, with a number for each of its layers."""
    numbers = itertools.count()

    def numbered(values: Any, weight: Any, inputs: Any, bias: Any, chunk: int) -> Any:
        return translate(values, weight, inputs, bias, chunk, mark=str(next(numbers)))

    return {GROUPED_LINEAR: numbered, **rnn_translations()}


def _name_sizes(program: Program, exported: torch.onnx.ONNXProgram) -> None:
    """Call the dimensions that vary by their names, where torch.onnx numbers them."""
    names: dict[str | ir.SymbolicDim, str] = {}
    for place, at, name in program.places:
        shape = exported.model.graph.inputs[place].shape
        if name != BATCH and shape is not None and isinstance(size := shape[at], ir.SymbolicDim):
            names[size] = name
    exported.rename_axes(names)


def refusal(program: Program, opset: int, error: BaseException) -> str:
    """Which operator torch.onnx cannot convert, where it comes from, and what can be done about it."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    texts = [re.sub(r"\x1b\[[0-9;]*m", "", str(one)) for one in chain]
    whole = "\n".join(texts)
    reason = next(line.strip() for line in (*texts[-1].splitlines(), type(chain[-1]).__name__) if line.strip())[
        :300
    ].rstrip(".")
    found = re.search(r"op='aten[.:]+(\w+)', overload='(\w+)'|torch\.ops\.aten\.(\w+)\.(\w+)", whole)
    if found is None:
        return (
            f"torch.onnx cannot convert {program.name!r} at opset {opset}: {type(chain[-1]).__name__}: {reason}. The exception that this "
            f"one was raised from says more; if it names no part of your model, please report it."
        )
    name, overload = (group for group in found.groups() if group)
    nodes = [
        n for n in program.phases["eval"].graph.nodes if str(n.target) in (f"aten.{name}.{overload}", f"aten.{name}")
    ]
    owners = sorted({str(node.meta["owner"]) for node in nodes if node.meta.get("owner")})
    where = f" in {', '.join(map(repr, owners))}" if owners else f" at %{nodes[0].name}" if nodes else ""
    advice = f"Write that part of the model with operators that ONNX has, in place of {name}"
    if name == "scaled_dot_product_attention":
        advice = (
            "Write the attention as matmul, softmax and matmul over [N, heads, L, E]; transformers models do with "
            "set_attn_implementation('eager')"
        )
    elif "opset" in reason.lower():
        advice = f"Try another opset than {opset}, or write that part of the model with other operators"
    return (
        f"torch.onnx cannot convert the operator aten.{name}.{overload}{where} of {program.name!r}: {reason}. {advice}."
    )


def clean(model: ir.Model) -> ir.Model:
    """Drop what names the machine that wrote the file, and shapes of weights: tools that rewrite weights do not keep them up to date.

    The marks of layers stay, for what rewrites them.
    """
    graph = model.graph
    _register_constants(graph)
    for node in graph:
        _bare(node, kept=MARK)
        for value in node.outputs:
            _bare(value)
    for value in (*graph.inputs, *graph.initializers.values()):
        _bare(value)
    without_shapes(graph)
    for holder in (model, graph):
        _bare(holder)
    used = {node.domain for node in graph}
    for domain in [domain for domain in model.opset_imports if domain not in used]:
        del model.opset_imports[domain]
    return model


def _register_constants(graph: ir.Graph) -> None:
    """Make constants that only their readers know initializers: torch.onnx registers one of several that begin with the same name, as the
    shapes of an input that is flattened twice do."""
    known = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in node.inputs:
            if value is not None and value.producer() is None and value.const_value is not None and value not in known:
                graph.register_initializer(value)
                known.add(value)


def _bare(holder: ir.Model | ir.Graph | ir.Node | ir.Value, kept: str = "") -> None:
    for key in [key for key in holder.metadata_props if key != kept]:
        del holder.metadata_props[key]
    holder.doc_string = None


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep the exporter's progress and warnings from the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
