"""An exported program as one flat graph over the model's own state: no lifted inputs, no nested graphs."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from sparsify.errors import TraceError
from sparsify.ir.inputs import Constant
from sparsify.ir.nodes import TensorSpec
from sparsify.ir.phase import FULL_PRECISION
from sparsify.ir.state import place
from sparsify.ir.traits import argument, input_of, outputs_of

aten = torch.ops.aten
_STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_MUTATIONS = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION, OutputKind.USER_INPUT_MUTATION)
_CONDITIONS = {"cond": "torch.cond", "while_loop": "while_loop", "scan": "scan", "map_impl": "map"}


@dataclass
class FlatGraph:
    """A phase's graph, its arguments that are not tensors (by place), and the values that it returns."""

    graph: fx.Graph
    constants: dict[int, Constant]
    returned: tuple[Any, ...] = ()


@dataclass
class _Flattening:
    """The working state while one exported program is copied."""

    exported: ExportedProgram
    phase: str
    symbols: Mapping[str, str]
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    gradient_free: set[fx.Node] = field(default_factory=set)
    same: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """Operands that a region of no_grad returns unchanged (``x.float()`` of a float32, ``x.add_(1)``), by the node that returns them."""


def flatten(
    exported: ExportedProgram, state: nn.Module, phase: str, places: Mapping[str, Mapping[int, str]] | None = None
) -> FlatGraph:
    """Copy an exported program into a graph that reads ``state`` by name, with regions of no_grad and autocast inlined.

    Args:
        exported: the export of one phase.
        state: parameters and buffers under the model's names; tensors that the export lifted out of the code are added to it.
        phase: ``train`` or ``eval``.
        places: names of the dimensions that vary, by input and place.

    Returns:
        The graph. The caller still has to make its output node from ``returned``.

    Raises:
        TraceError: If the model holds a condition, a loop or an autocast region that a flat graph cannot hold.
    """
    made = _Flattening(exported, phase, _symbols(exported.graph, places or {}))
    constants, targets = _read_inputs(made, state)
    returned = cast("tuple[Any, ...]", _copy(made, exported.graph_module, detached=False, full_precision=False))
    kept: list[Any] = []
    for value, specification in zip(returned, exported.graph_signature.output_specs, strict=True):
        if specification.kind in _MUTATIONS:
            made.graph.call_function(aten.copy_.default, (targets[cast(str, specification.target)], value))
        else:
            kept.append(value)
    _drop_resized(made, state)
    return FlatGraph(made.graph, constants, tuple(kept))


def _read_inputs(made: _Flattening, state: nn.Module) -> tuple[dict[int, Constant], dict[str, fx.Node]]:
    """Make the nodes of state and inputs.

    Returns:
        The inputs that are constants, by place among the arguments; and by name, the nodes of state and of all other inputs.

    Raises:
        TraceError: If an input of the exported program is an object that is not a tensor.
    """
    constants, targets, place_of_input = dict[int, Constant](), dict[str, fx.Node](), 0
    placeholders = {node.name: node for node in made.exported.graph.nodes if node.op == "placeholder"}
    for specification in made.exported.graph_signature.input_specs:
        node = placeholders[specification.arg.name]
        if specification.kind in _STATE:
            name = cast(str, specification.target)
            value = made.exported.state_dict.get(name, made.exported.constants.get(name))
            if specification.kind is InputKind.CONSTANT_TENSOR:
                name = f"constants.{made.phase}_{name.replace('.', '_')}"
                place(state, name, cast(Tensor, value).detach().clone(), persistent=True)
            copied = made.graph.create_node("get_attr", name)
            copied.meta["spec"] = TensorSpec(copied.name, tuple(cast(Tensor, value).shape), _dtype(cast(Tensor, value)))
            if specification.kind is not InputKind.PARAMETER:
                made.gradient_free.add(copied)
        elif specification.kind is InputKind.USER_INPUT:
            place_of_input += 1
            if _is_constant(specification):
                constants[place_of_input - 1] = cast(Any, specification.arg).value
                continue
            copied = made.graph.node_copy(node)
            copied.meta = _meta(made, node, copied)
        else:
            raise TraceError(
                f"the model uses {specification.target!r}, an object of kind {specification.kind.name} that a graph of ATen "
                f"operators cannot hold. Trace a part of the model without it."
            )
        made.values[node] = targets[specification.target or specification.arg.name] = copied
    return constants, targets


def _copy(made: _Flattening, module: fx.GraphModule, *, detached: bool, full_precision: bool) -> Any:
    """Copy the nodes of a graph whose placeholders have values already; returns the values of its output."""
    for node in module.graph.nodes:
        if node.op == "get_attr":
            made.values[node] = getattr(module, node.target)  # a nested graph; export gives it a name of its own
        elif node.op == "output":
            return fx.map_arg(outputs_of(node), lambda n: made.values[n])
        elif node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator):
            made.values[node] = _inlined(made, node, detached=detached, full_precision=full_precision)
        elif node.target is aten._assert_tensor_metadata.default:
            continue  # it asserts the example's dtype and device, which autocast and moving a program change
        elif node.target is operator.getitem and isinstance(made.values[input_of(node)], (tuple, list)):
            made.values[node] = made.values[input_of(node)][argument(node, "b")]
        elif (functional := _without_out(node)) is not None:
            arguments = fx.map_arg(
                (node.args, {k: v for k, v in node.kwargs.items() if k != "out"}), lambda n: made.values[n]
            )
            result = made.graph.call_function(functional, *arguments)
            result.meta = _meta(made, node, result)
            copied = made.values[node] = made.graph.call_function(
                aten.copy_.default, (made.values[node.kwargs["out"]], result)
            )
            copied.meta = _meta(made, node, copied)
        elif node.op != "placeholder":
            copied = made.values[node] = made.graph.node_copy(node, lambda n: made.values[n])
            copied.meta = _meta(made, node, copied)
            if full_precision:
                copied.meta[FULL_PRECISION] = True
            if detached:
                made.gradient_free.add(copied)
                if _returns_its_argument(copied):
                    made.same[copied] = cast(fx.Node, input_of(copied))
    raise AssertionError("a graph ends in its output")


def _without_out(node: fx.Node) -> torch._ops.OpOverload | None:
    """Find the overload that returns the value which the node's operator writes into ``out=``; None for other nodes."""
    if node.op != "call_function" or "out" not in node.kwargs or not isinstance(node.target, torch._ops.OpOverload):
        return None
    packet = node.target.overloadpacket
    wanted = [(a.name, str(a.type)) for a in node.target._schema.arguments if a.name != "out"]
    overloads = (getattr(packet, name) for name in packet.overloads())
    return next((o for o in overloads if [(a.name, str(a.type)) for a in o._schema.arguments] == wanted), None)


def _inlined(made: _Flattening, node: fx.Node, *, detached: bool, full_precision: bool) -> Any:
    """Copy the nodes of a nested graph in place of its call; returns the values of the nested graph."""
    name, outside = cast(Any, node.target).name(), detached
    values: list[Any] = [made.values[a] if isinstance(a, fx.Node) else a for a in node.args]
    if name == "wrap_with_set_grad_enabled":
        enabled, body, *operands = values
        if enabled and detached:
            raise TraceError(
                f"the model uses torch.enable_grad inside torch.no_grad{_where(node)}; a trace cannot hold both. Compute the part "
                f"that needs gradients outside no_grad."
            )
        detached = detached or not enabled
        operands = [_detached(made, operand) for operand in operands] if not enabled else operands
    elif name == "wrap_with_autocast":
        device, dtype, enabled, _, body, *operands = values
        if enabled:
            raise TraceError(
                f"the model computes in {dtype} under torch.autocast({device!r}){_where(node)}, so its layers have another "
                f"precision than their weights. Remove the autocast from forward and train with precision = 'bf16', or call the "
                f"program under autocast."
            )
        full_precision = True
    elif name in ("tag_activation_checkpoint", "invoke_subgraph"):
        body, *operands = [v for v in values if not isinstance(v, str)]
    else:
        title = _CONDITIONS.get(name, name)
        raise TraceError(
            f"the model uses {title}{_where(node)}: the trace would hold nested graphs, which sparsify cannot mask, save or export. "
            f"Replace it by torch.where over both results, by a plain Python loop of fixed length, or trace the parts one by one."
        )
    inputs = [n for n in body.graph.nodes if n.op == "placeholder"]
    made.values.update(zip(inputs, operands, strict=True))
    results = _copy(made, body, detached=detached, full_precision=full_precision)
    return results if outside else fx.map_arg(results, lambda n: _operand(made, n))


def _returns_its_argument(node: fx.Node) -> bool:
    """Return whether an operator returns its own argument: an in-place operator, or a conversion to the dtype that a tensor already has."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or not node.args:
        return False
    value = input_of(node)
    source = value.meta.get("spec") if isinstance(value, fx.Node) else None
    own = node.meta.get("spec")
    if source is None or own is None or source.dtype != own.dtype or source.shape != own.shape:
        return False
    first = node.target._schema.arguments[0].alias_info
    in_place = first is not None and first.is_write
    return in_place or (node.target.overloadpacket in (aten.to, aten.contiguous) and not node.kwargs.get("copy"))


def _operand(made: _Flattening, value: fx.Node) -> fx.Node:
    """Return a value as the code after a region of no_grad sees it: an operand that came out unchanged keeps its gradient."""
    while value in made.same:
        value = made.same[value]
    return value


def _detached(made: _Flattening, value: Any) -> Any:
    """Return a value without its gradient, as a region of no_grad sees it."""
    spec = value.meta.get("spec") if isinstance(value, fx.Node) else None
    if spec is None or value in made.gradient_free or not ("float" in spec.dtype or "complex" in spec.dtype):
        return value
    node = made.graph.call_function(aten.detach.default, (value,))
    node.meta = {**value.meta, "spec": TensorSpec(node.name, spec.shape, spec.dtype)}
    made.gradient_free.add(node)
    made.same[node] = value
    return node


def _drop_resized(made: _Flattening, state: nn.Module) -> None:
    """Drop writes that change the shape of a buffer, if nothing reads it: such a write cannot affect any call.

    Raises:
        TraceError: If such a buffer is read.
    """
    for node in list(made.graph.nodes):
        if node.target is not aten.copy_.default or node.users:
            continue
        buffer, value = argument(node, "self"), argument(node, "src")
        if buffer.op != "get_attr":
            continue
        have, want = buffer.meta["spec"], value.meta.get("spec")
        if want is None or want.shape == have.shape:
            continue
        if len(buffer.users) > 1:
            raise TraceError(
                f"forward replaces the buffer {buffer.target!r} of shape {list(have.shape)} by one of shape {list(want.shape)} and "
                f"reads it as well, so one call depends on the call before. Pass the state in and out as an argument and an output."
            )
        made.graph.erase_node(node)
        made.graph.erase_node(buffer)


def _meta(made: _Flattening, node: fx.Node, copied: fx.Node) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        shape = tuple(size if isinstance(size, int) else _rename(str(size), made.symbols) for size in value.shape)
        meta["spec"] = TensorSpec(copied.name, shape, _dtype(value))
    stack = node.meta.get("nn_module_stack")
    if stack and node.op == "call_function":
        path = str(list(stack.values())[-1][0])
        meta["owner"] = re.sub(r"@\d+", "", path)
    return meta


def _symbols(graph: fx.Graph, places: Mapping[str, Mapping[int, str]]) -> dict[str, str]:
    """Name the symbolic sizes: those in ``places``, then N1, N2, ... in order of appearance."""
    names: dict[str, str] = {}
    shapes = [(node, node.meta["val"].shape) for node in graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    for node, shape in shapes:
        for at, name in places.get(str(node.target), {}).items() if node.op == "placeholder" else ():
            if not isinstance(shape[at], int) and re.fullmatch(r"[a-z]\d+", str(shape[at])):
                names.setdefault(str(shape[at]), name)
    for _, shape in shapes:
        for size in shape:
            if not isinstance(size, int):
                for symbol in re.findall(r"[a-z]\d+", str(size)):
                    names.setdefault(symbol, f"N{len(set(names.values()))}" if names else "N")
    return names


def _rename(text: str, symbols: Mapping[str, str]) -> str:
    return re.sub(r"[a-z]\d+", lambda match: symbols.get(match[0], match[0]), text)


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _is_constant(specification: Any) -> bool:
    return specification.kind is InputKind.USER_INPUT and hasattr(specification.arg, "value")


def _where(node: fx.Node) -> str:
    """ " at file.py:12 in forward" for the last line of the model's own code that made the node."""
    return source_line(str(node.meta.get("stack_trace") or ""))


def source_line(trace: str) -> str:
    """Return the last line outside torch in a stack trace, as " at file.py:12 in forward"; empty if there is none."""
    lines: Sequence[tuple[str, str, str]] = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', trace)
    return next(
        (
            f" at {f.rsplit('/', 1)[-1]}:{line} in {name}"
            for f, line, name in reversed(lines)
            if "/torch/" not in f and f[:1] != "<"
        ),
        "",
    )
