"""Steps of time in a file: all at once, one after another, in an ONNX ``Scan``, or one per call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from sparsify.errors import ExportError
from sparsify.exporters.conversion import convert
from sparsify.exporters.graphs import Writer, reroute
from sparsify.ir import Program, Stage
from sparsify.ir.single_step import NEXT, first_states, single_step, state_names, step_count
from sparsify.passes import Pipeline

STEPS = ("whole", "unrolled", "scan", "single")


def stepwise(program: Program, inputs: Sequence[Tensor]) -> tuple[Program, list[Tensor], dict[str, str]]:
    """Return a single step of a program, inputs with states as they are in the middle of the steps, and what its file says of them.

    Raises:
        PassError: If the program has no single step (`sparsify.ir.single_step`).
    """
    count = step_count(program)
    step = single_step(Pipeline.parse("fold-masks")(program) if program.stage is Stage.MASKED else program)
    step.task = program.task
    names, states = state_names(step), first_states(step, list(inputs))
    with torch.no_grad():
        for _ in range(count // 2):
            found = dict(zip(step.output_names("eval"), step.run_phase("eval", *inputs, *states), strict=True))
            states = [found[NEXT + name] for name in names]
    return step, [*inputs, *states], {"steps": str(count), "states": " ".join(names)}


def scanned(program: Program, inputs: Sequence[Tensor], opset: int) -> ir.Model:
    """Convert a program to a graph that goes through its steps in a ``Scan``; what all steps share is computed once, before it.

    Raises:
        PassError: If the program has no single step.
        ExportError: If torch.onnx cannot convert it, or an output is neither a mean over steps nor the same in all.
    """
    return _converted(program, inputs, opset, _scan)


def unrolled(program: Program, inputs: Sequence[Tensor], opset: int) -> ir.Model:
    """Convert a program to a graph of all its steps, one after another, which read the same weights; raises as `scanned` does."""
    return _converted(program, inputs, opset, _unroll)


@dataclass
class _Loop:
    """A graph of a single step, taken apart.

    Attributes:
        graph: has what all steps share, and what reads their end.
        inside: nodes of a step, in order.
        begins: the states that a step reads, inputs of ``graph`` before.
        ends: the states that it makes, in the same order.
        zeros: the states before the first step.
        steps: how many there are.
    """

    graph: ir.Graph
    inside: list[ir.Node]
    begins: list[ir.Value]
    ends: list[ir.Value]
    zeros: list[ir.Value]
    steps: int


def _converted(
    program: Program,
    inputs: Sequence[Tensor],
    opset: int,
    repeat: Callable[[_Loop], tuple[list[ir.Value], list[ir.Node]]],
) -> ir.Model:
    step = single_step(program)
    model, names = convert(step, [*inputs, *first_states(step, list(inputs))], opset), state_names(step)
    graph, outputs = model.graph, {str(value.name): value for value in model.graph.outputs}
    given = {str(value.name): value for value in graph.inputs}
    begins, ends = [given[name] for name in names], [_made(outputs[NEXT + name]) for name in names]
    inside, rest = _partition(graph, begins, ends)
    shown = {
        name: (_made(value), value.type, value.shape)
        for name, value in outputs.items()
        if name not in {NEXT + n for n in names}
    }
    for node in rest:
        for value in node.inputs:
            if value is not None and value.producer() in inside and value not in ends:
                raise ExportError(
                    f"the node {node.name!r} reads {value.name!r}, which differs from step to step. Only means over steps can leave their "
                    f"loop: export with steps='whole'."
                )
    graph.inputs[:] = [value for value in graph.inputs if value not in begins]
    graph.outputs.clear()
    write = Writer(next(iter(graph)), graph)
    batch = write.call("Shape", [graph.inputs[0]], "steps_batch", start=0, end=1)
    zeros = [_zeros(write, name, value, batch) for name, value in zip(names, begins, strict=True)]
    ordered = [node for node in graph if node in inside]
    after = [node for node in graph if node in rest]
    graph.remove([*ordered, *after])
    last, nodes = repeat(_Loop(graph, ordered, begins, ends, zeros, step_count(program)))
    graph.extend(nodes)
    graph.extend(after)
    for end, value in zip(ends, last, strict=True):
        reroute(end, value, after)
    for name, (value, kind, shape) in shown.items():
        source = last[ends.index(value)] if value in ends else value
        output = ir.Value(name=name, type=kind, shape=shape)
        if source.name == name:
            source.name = f"{name}_of_steps"
        graph.append(ir.Node("", "Identity", [source], outputs=[output]))
        graph.outputs.append(output)
    return model


def _scan(loop: _Loop) -> tuple[list[ir.Value], list[ir.Node]]:
    """Put the nodes of a step into the body of a ``Scan``; returns the last states, and the node."""
    turns = Writer(next(iter(loop.graph)), loop.graph).constant("steps_turns", np.zeros(loop.steps, np.float32))
    inside = [ir.Value(name=f"step_{value.name}", type=value.type, shape=value.shape) for value in loop.begins]
    turn = ir.Value(name="step_turn", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
    made = [ir.Value(name=f"last_{value.name}", type=value.type, shape=value.shape) for value in loop.begins]
    for value, inner in zip(loop.begins, inside, strict=True):
        reroute(value, inner, loop.inside)
    body = ir.Graph([*inside, turn], loop.ends, nodes=loop.inside, name="step")
    attributes = [ir.AttrGraph("body", body), ir.AttrInt64("num_scan_inputs", 1)]
    return made, [ir.Node("", "Scan", [*loop.zeros, turns], attributes, outputs=made, name="scan")]


def _unroll(loop: _Loop) -> tuple[list[ir.Value], list[ir.Node]]:
    """Repeat the nodes of a step; returns the last states, and the nodes."""
    states, nodes = loop.zeros, list[ir.Node]()
    for step in range(loop.steps):
        now: dict[ir.Value, ir.Value] = dict(zip(loop.begins, states, strict=True))
        for node in loop.inside:
            outputs = [
                ir.Value(name=f"{value.name}_{step}", type=value.type, shape=value.shape) for value in node.outputs
            ]
            given = [None if value is None else now.get(value, value) for value in node.inputs]
            nodes.append(
                ir.Node(
                    node.domain,
                    node.op_type,
                    given,
                    node.attributes.values(),
                    outputs=outputs,
                    name=f"{node.name}_{step}",
                )
            )
            now.update(zip(node.outputs, outputs, strict=True))
        states = [now[end] for end in loop.ends]
    return states, nodes


def _made(value: ir.Value) -> ir.Value:
    """Return the value that an output is a copy of, or itself."""
    while (node := value.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _partition(graph: ir.Graph, before: list[ir.Value], after: list[ir.Value]) -> tuple[set[ir.Node], set[ir.Node]]:
    """Return the nodes of a step, which depend on its states and lead to the next, and the others that depend on states."""
    depending, values = set[ir.Node](), set(before)
    for node in graph:
        if any(value in values for value in node.inputs):
            depending.add(node)
            values.update(node.outputs)
    waiting, leading = [value.producer() for value in after], set[ir.Node]()
    while waiting:
        node = waiting.pop()
        if node is not None and node in depending and node not in leading:
            leading.add(node)
            waiting += [value.producer() for value in node.inputs if value is not None]
    return leading, depending - leading


def _zeros(write: Writer, name: str, value: ir.Value, batch: ir.Value) -> ir.Value:
    """Return a state before the first step: zeros, as many as there are samples."""
    sizes = list(value.shape or ())[1:]
    if not all(isinstance(size, int) for size in sizes):
        raise ExportError(
            f"the state {name!r} of a spiking network has the shape {value.shape}, and only its batch may vary in a Scan. Trace the model "
            f"without dynamic dimensions, or export with steps='whole'."
        )
    shape = batch
    if sizes:
        rest = write.constant(f"scan_sizes_{name}", np.asarray(sizes, np.int64))
        shape = write.call("Concat", [batch, rest], f"scan_shape_{name}", axis=0)
    return write.call("ConstantOfShape", [shape], f"scan_zeros_{name}", like=value)
