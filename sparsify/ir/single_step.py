"""A spiking network as one step of time: potentials and sums of outputs go in and come out, for inputs that arrive step by step."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sparsify.errors import PassError
from sparsify.ir import surgery
from sparsify.ir.axes import shape_of
from sparsify.ir.binding import plain_inputs, plain_signature
from sparsify.ir.copying import viewed
from sparsify.ir.dimensions import BATCH, divided
from sparsify.ir.inputs import varying_places
from sparsify.ir.neurons import lif, lif_step, mean_of_steps, steps_of
from sparsify.ir.nodes import Stage, TensorSpec
from sparsify.ir.traits import argument, arguments, kind_of

if TYPE_CHECKING:
    from sparsify.ir.program import Program

POTENTIAL, TOTAL, NEXT = "potential", "total", "next_"
"""Names of states: of each layer of neurons, and of each output that is a mean over steps. The output has the same name after `NEXT`."""


def single_step(program: Program) -> Program:
    """Make a program of the eval phase that computes one step.

    Its inputs are those of ``program``, then for each layer of neurons its potential and for each output that is a mean over steps the sum
    so far, divided by the number of steps. They are 0 before the first step. Its outputs are those of ``program``, then the next states.
    An output counts the steps so far; after the last step it is that of ``program``, up to rounding.

    Args:
        program: with neurons, of the encoding ``direct``. It stays as it is; the result reads the same parameters.

    Raises:
        PassError: If it has no neurons, or lays steps out itself; or its inputs are not tensors given by position.
    """
    if program.stage is Stage.MASKED:
        raise PassError(f"{program.name!r} has masks. Fold them first: fold-masks.")
    if program.plain_inputs < 1:
        raise PassError(
            f"{program.name!r} takes structured inputs; a single step is made of programs that take tensors by position."
        )
    count, made = step_count(program), viewed(program, "eval")
    made.stage = Stage.DEPLOYED
    graph = made.phases["eval"].graph
    nodes = [node for node in graph.nodes if kind_of(node) in ("neuron", "steps")]
    for node in graph.nodes:
        if isinstance(node.meta.get("spec"), TensorSpec) and node.op not in ("placeholder", "get_attr"):
            surgery.reshape_spec(node, [divided(size, BATCH, count) for size in shape_of(node)])
    rewrite = _Rewrite(made)
    for node in nodes:
        if node.target is lif:
            rewrite.neurons(node)
        elif node.target is mean_of_steps:
            rewrite.mean(node, count)
        else:
            surgery.bypass(made, "eval", node, argument(node, "size" if node.target is steps_of else "value"))
    rewrite.finish()
    return made


def step_count(program: Program) -> int:
    """Return the number of steps of a spiking network.

    Raises:
        PassError: If it is none, or lays steps out itself.
    """
    nodes = [node for node in program.phases["eval"].graph.nodes if kind_of(node) in ("neuron", "steps")]
    steps = {int(argument(node, "steps")) for node in nodes if node.target is not lif_step}
    if len(steps) != 1 or not any(node.target is mean_of_steps for node in nodes):
        raise PassError(
            f"{program.name!r} is no spiking network whose steps the pass spiking laid out with encoding=direct. Only such a network has a "
            f"single step."
        )
    return steps.pop()


def state_names(step: Program) -> list[str]:
    """Return the names of the states of a single step, in the order of its inputs."""
    outputs = {*step.output_names("eval")}
    return [spec.name for spec in step.input_specs if NEXT + spec.name in outputs]


def first_states(step: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the states of a single step before the first one, zeros, for as many samples as ``inputs`` hold."""
    names = {*state_names(step)}
    return [
        torch.zeros([len(inputs[0]), *spec.shape[1:]], dtype=getattr(torch, spec.dtype), device=inputs[0].device)  # type: ignore[list-item]
        for spec in step.input_specs
        if spec.name in names
    ]


class _Rewrite:
    """Rewrites the eval phase of a program of its own; collects its new inputs and outputs."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.states = list[TensorSpec]()
        self.last = [node for node in program.phases["eval"].graph.nodes if node.op == "placeholder"][-1]

    def neurons(self, node: fx.Node) -> None:
        """Replace a layer of neurons by one step of it."""
        potential = self._state(f"{POTENTIAL}_{len(self.states)}", node)
        given = arguments(node)
        options = [
            value for name, value in given.items() if name not in ("current", "leak", "threshold", "steps", "repeated")
        ]
        called = (given["current"], potential, given["leak"], given["threshold"], *options)
        both = surgery.call_after(self.program, "eval", node, lif_step, called)
        spikes = surgery.call_after(self.program, "eval", both, operator.getitem, (both, 0), spec=node.meta["spec"])
        after = surgery.call_after(self.program, "eval", spikes, operator.getitem, (both, 1), spec=node.meta["spec"])
        surgery.bypass(self.program, "eval", node, spikes)
        surgery.append_output(self.program, "eval", f"{NEXT}{potential.name}", after)

    def mean(self, node: fx.Node, steps: int) -> None:
        """Replace a mean over steps by the sum so far, divided by their number."""
        total, value = self._state(f"{TOTAL}_{len(self.states)}", node), argument(node, "value")
        share = surgery.call_after(self.program, "eval", node, torch.ops.aten.div.Tensor, (value, steps))
        after = surgery.call_after(self.program, "eval", share, torch.ops.aten.add.Tensor, (total, share))
        surgery.bypass(self.program, "eval", node, after)
        surgery.append_output(self.program, "eval", f"{NEXT}{total.name}", after)

    def finish(self) -> None:
        """Give the program its new inputs, and check it."""
        specs = (*self.program.input_specs, *self.states)
        structure = pytree.tree_structure(((0,) * len(specs), {}))
        self.program.__dict__.update(
            input_specs=specs,
            in_spec=structure,
            plain_inputs=plain_inputs(structure),
            places=varying_places(specs),
            signature=plain_signature([spec.name for spec in specs], structure),
        )
        surgery.erase_dead(self.program, "eval")
        surgery.finish(self.program)
        self.program.verify()

    def _state(self, name: str, node: fx.Node) -> fx.Node:
        """Add an input of the shape of a value."""
        self.last = surgery.append_input(self.program, "eval", name, node.meta["spec"], after=self.last)
        self.states.append(self.last.meta["spec"])
        return self.last
