"""Rules of each stage. A rule is a function with an id; all violations are collected, then raised once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsify.errors import VerificationError
from sparsify.ir.nodes import MASK_OPERATORS, Stage, apply_random_mask
from sparsify.ir.program import PHASES, Program


@dataclass(frozen=True)
class Violation:
    """A broken rule: its id, where (a qualified name or a node), and what was found."""

    rule: str
    where: str
    found: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.where}: {self.found}"


Rule = Callable[[Program], Iterator[Violation]]


def state_missing(program: Program) -> Iterator[Violation]:
    """Every ``get_attr`` and ``call_module`` node names existing state."""
    tensors = {
        n
        for n, _ in (*program.named_parameters(remove_duplicate=False), *program.named_buffers(remove_duplicate=False))
    }
    modules = {name for name, _ in program.named_modules(remove_duplicate=False)}
    for phase in PHASES:
        for node in program.phases[phase].graph.nodes:
            if node.op == "get_attr" and node.target not in tensors:
                yield Violation(
                    "state-missing", str(node.target), f"%{node.name} of {phase} reads state that does not exist"
                )
            if node.op == "call_module" and node.target not in modules:
                yield Violation(
                    "state-missing", str(node.target), f"%{node.name} of {phase} calls a module that does not exist"
                )


def spec_missing(program: Program) -> Iterator[Violation]:
    """Every parameter node has a spec that agrees with the parameter's shape."""
    shapes = {name: tuple(p.shape) for name, p in program.named_parameters(remove_duplicate=False)}
    for phase in PHASES:
        for node in program.phases[phase].graph.nodes:
            if node.op == "get_attr" and node.target in shapes:
                spec = node.meta.get("spec")
                if spec is None or spec.shape != shapes[node.target]:
                    yield Violation(
                        "spec-missing",
                        str(node.target),
                        f"%{node.name} of {phase} says {spec}, the parameter has {shapes[node.target]}",
                    )


def phases_disagree(program: Program) -> Iterator[Violation]:
    """Both phases take the same inputs and mask the same weights with the same masks and patterns."""
    tables = {phase: _mask_table(program, phase) for phase in PHASES}
    for weight in sorted(tables["train"].keys() | tables["eval"].keys()):
        train, evaluation = tables["train"].get(weight), tables["eval"].get(weight)
        used = all(_reads(program, phase, weight) for phase in PHASES)
        if train != evaluation and used:
            yield Violation("phases-disagree", weight, f"train has mask {train}, eval has {evaluation}")
    inputs = {phase: [n.name for n in program.phases[phase].graph.nodes if n.op == "placeholder"] for phase in PHASES}
    if len(inputs["train"]) != len(inputs["eval"]) or len(inputs["train"]) != len(program.input_specs):
        yield Violation("phases-disagree", "inputs", f"train takes {inputs['train']}, eval {inputs['eval']}")


def outputs_named(program: Program) -> Iterator[Violation]:
    """Every flat output has a unique name, and one of them is ``logits``."""
    for phase in PHASES:
        node = program.output_node(phase)
        names = node.meta.get("names", ())
        if len(names) != len(node.args[0]) or len(set(names)) != len(names):  # type: ignore[arg-type]
            yield Violation("outputs-named", phase, f"outputs {node.args[0]} are named {names}")


def mask_bypassed(program: Program) -> Iterator[Violation]:
    """Every use of a masked weight goes through its mask."""
    masked = {id(program.get_parameter(weight)) for phase in PHASES for weight in _mask_table(program, phase)}
    tensors = dict(program.named_parameters(remove_duplicate=False))
    for phase in PHASES:
        for node in program.phases[phase].graph.nodes:
            if node.op == "get_attr" and node.target in tensors and id(tensors[node.target]) in masked:
                for user in node.users:
                    if user.target not in MASK_OPERATORS:
                        yield Violation("mask-bypassed", str(node.target), f"also read by %{user.name} of {phase}")


def mask_malformed(program: Program) -> Iterator[Violation]:
    """A mask is a bool buffer ``<weight>_mask`` of its weight's shape."""
    for weight, (mask, _) in _mask_table(program, "train").items():
        value = program.get_buffer(mask)
        if (
            mask != f"{weight}_mask"
            or value.dtype is not torch.bool
            or value.shape != program.get_parameter(weight).shape
        ):
            yield Violation("mask-malformed", weight, f"mask {mask!r} is {value.dtype} {tuple(value.shape)}")


def inactive_nonzero(program: Program) -> Iterator[Violation]:
    """Where masks are lowered, inactive weights are exactly 0 (the lowering reads them unmasked)."""
    lowered = {
        str(node.args[0].target): str(node.args[1].target)
        for phase in PHASES
        for node in program.phases[phase].graph.nodes
        if node.target is MASK_OPERATORS[1]
    }
    for weight, mask in lowered.items():
        stray = count_stray(program.get_parameter(weight), program.get_buffer(mask))
        if stray:
            yield Violation("inactive-nonzero", weight, f"{stray} inactive weights are not 0 under a lowered mask")


def random_mask_malformed(program: Program) -> Iterator[Violation]:
    """A random mask stands in the train phase alone; it is a bool buffer ``<weight>_visible`` of its weight's shape."""
    names = dict(program.named_parameters(remove_duplicate=False))
    for phase in PHASES:
        for node in program.phases[phase].graph.nodes:
            if node.target is not apply_random_mask:
                continue
            visible = str(node.args[1].target)
            value, weight = program.get_buffer(visible), names.get(visible.removesuffix("_visible"))
            if phase != "train":
                yield Violation("random-mask-malformed", node.name, f"a random mask in {phase}")
            elif weight is None or value.dtype is not torch.bool or value.shape != weight.shape:
                yield Violation("random-mask-malformed", visible, f"is {value.dtype} {tuple(value.shape)}")


def masks_absent(program: Program) -> Iterator[Violation]:
    """A folded program has no mask, tap or mask buffer left."""
    for phase in PHASES:
        for node in program.phases[phase].graph.nodes:
            if node.target in (*MASK_OPERATORS, apply_random_mask) or node.op == "call_module":
                yield Violation("masks-absent", node.name, f"left in {phase} of a folded program")
    for name, _ in program.named_buffers():
        if (
            name.endswith("_mask")
            and program.get_buffer(name).dtype is torch.bool
            and _is_parameter(program, name[:-5])
        ):
            yield Violation("masks-absent", name, "buffer left in a folded program")


_ALWAYS: tuple[Rule, ...] = (state_missing, spec_missing, phases_disagree, outputs_named)
RULES: dict[Stage, tuple[Rule, ...]] = {
    Stage.TRACED: (*_ALWAYS, random_mask_malformed),
    Stage.MASKED: (*_ALWAYS, mask_bypassed, mask_malformed, inactive_nonzero, random_mask_malformed),
    Stage.FOLDED: (*_ALWAYS, masks_absent),
}


def violations(program: Program) -> list[Violation]:
    """All violations of the rules of the program's stage."""
    missing = list(state_missing(program))
    return missing or [violation for rule in RULES[program.stage] for violation in rule(program)]


def count_stray(weight: Tensor, mask: Tensor) -> int:
    """How many inactive weights are not 0."""
    return int(((weight.detach() != 0) & ~mask).count_nonzero())


def verify(program: Program) -> None:
    """Check every rule of the program's stage.

    Raises:
        VerificationError: Listing all violations; the program's text is attached as a note.
    """
    found = violations(program)
    if found:
        error = VerificationError(
            f"program {program.name!r} breaks {len(found)} rule(s) of stage {program.stage.value}:\n"
            + "\n".join(f"  {violation}" for violation in found)
        )
        if not any(violation.rule == "state-missing" for violation in found):
            error.add_note(program.text())
        raise error


def _mask_table(program: Program, phase: str) -> dict[str, tuple[str, str]]:
    names = {id(parameter): name for name, parameter in program.named_parameters()}
    table: dict[str, tuple[str, str]] = {}
    for node in program.phases[phase].graph.nodes:
        if node.target in MASK_OPERATORS:
            table[names[id(program.get_parameter(node.args[0].target))]] = (node.args[1].target, node.args[2])
    return table


def _reads(program: Program, phase: str, weight: str) -> bool:
    value: nn.Parameter | Tensor = program.get_parameter(weight)
    tensors = dict(program.named_parameters(remove_duplicate=False))
    nodes = program.phases[phase].graph.nodes
    return any(node.op == "get_attr" and tensors.get(str(node.target)) is value for node in nodes)


def _is_parameter(program: Program, name: str) -> bool:
    return name in dict(program.named_parameters(remove_duplicate=False))
