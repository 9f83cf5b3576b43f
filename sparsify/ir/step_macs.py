"""Counts the multiply-accumulates of a training step: of the forward pass, and of the gradients that the backward pass computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from sparsify.ir.nodes import MASK_OPERATORS, TensorSpec, apply_random_mask
from sparsify.ir.products import Macs, is_product
from sparsify.ir.sites import leading_phase, parameter_names
from sparsify.ir.traits import argument, has_argument, input_of, kind_of, operands, state_name, traits
from sparsify.ir.weight_reads import for_outputs, from_inputs, is_tap

if TYPE_CHECKING:
    from sparsify.ir.program import Program

_ADDING = ("addmm", "baddbmm", "addmv")
"""Products whose first argument is added to the result and not multiplied."""


@dataclass(frozen=True)
class StepMacs:
    """Multiply-accumulates per sample of a training step.

    Attributes:
        forward: of the forward pass.
        inputs: of the gradients of the values that products read; there are none for the inputs of the program.
        weights: of the gradients of the weights that are trained.
    """

    forward: int = 0
    inputs: int = 0
    weights: int = 0

    @property
    def total(self) -> int:
        """The sum of the three."""
        return self.forward + self.inputs + self.weights

    def __add__(self, other: StepMacs) -> StepMacs:
        return StepMacs(self.forward + other.forward, self.inputs + other.inputs, self.weights + other.weights)

    def times(self, factor: int, divisor: int = 1) -> StepMacs:
        """Multiply by ``factor / divisor``, rounded down."""
        return StepMacs(*(count * factor // divisor for count in (self.forward, self.inputs, self.weights)))


def step_macs(program: Program) -> dict[str, StepMacs]:
    """Count the multiply-accumulates of a step of the train phase, as if every weight were dense.

    The products are those of `Program.costs`. The gradient of each operand of a product that needs one takes as many as the product. The
    gradient of the input of a recurrent layer is counted even if nothing needs it.

    Returns:
        The counts of the products that read each masked weight directly, by its name, and under the empty name those of all others.
    """
    phase = leading_phase(program)
    module, macs, names = program.phases[phase], Macs(program), parameter_names(program)
    varying, needing = from_inputs(module), _needing_gradient(program, phase)
    live = varying & for_outputs(module)
    found = {"": StepMacs()}
    for node in module.graph.nodes:
        if node not in live or not is_product(node):
            continue
        forward, owner = macs.of(node) or 0, ""
        inputs = weights = 0
        if kind_of(node) == "attention":
            inputs = 2 * forward if node in needing else 0
        elif kind_of(node) == "recurrent":
            inputs = forward if node in needing else 0
            weights = sum(macs.of_weight(node, w) for w in _operands(node) if w in needing and w not in varying)
        else:
            for value in _operands(node):
                gradient = forward if value in needing else 0
                if value in varying:
                    inputs += gradient
                else:
                    weights += gradient
                    owner = _masked_weight(program, phase, value, names) or owner
        found[owner] = found.get(owner, StepMacs()) + StepMacs(forward, inputs, weights)
    return found


def _operands(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the values that a product multiplies, each once."""
    given = [] if traits(node).name in _ADDING else [input_of(node)]
    given += [*operands(node), *([argument(node, "input2")] if has_argument(node, "input2") else [])]
    recurrent = kind_of(node) == "recurrent"
    for value in dict.fromkeys(value for value in given if isinstance(value, fx.Node)):
        if not recurrent or len(_shape(value)) > 1:
            yield value


def _shape(value: fx.Node) -> tuple[int | str, ...]:
    spec = value.meta.get("spec")
    return spec.shape if isinstance(spec, TensorSpec) else ()


def _masked_weight(program: Program, phase: str, value: fx.Node, names: dict[str, str]) -> str | None:
    """Return the name of the masked weight that a value is, read through taps and random masks or not; None for other values."""
    while is_tap(program.phases[phase], value) or value.target is apply_random_mask:
        value = value.all_input_nodes[0]
    return names.get(state_name(value, "weight")) if value.target in MASK_OPERATORS else None


def _needing_gradient(program: Program, phase: str) -> set[fx.Node]:
    """Return the nodes through which a gradient reaches a parameter that requires one."""
    trained = {name for name, p in program.named_parameters(remove_duplicate=False) if p.requires_grad}
    found = set[fx.Node]()
    for node in program.phases[phase].graph.nodes:
        if node.op == "get_attr":
            needs = node.target in trained
        else:
            spec = node.meta.get("spec")
            numbers = not isinstance(spec, TensorSpec) or spec.dtype.startswith(("float", "bfloat", "complex"))
            needs = numbers and traits(node).name != "detach" and not found.isdisjoint(node.all_input_nodes)
        if needs:
            found.add(node)
    return found
