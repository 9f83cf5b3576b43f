"""Rules of each stage. A rule is a function with an id; all violations are collected, then raised once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsify.errors import VerificationError
from sparsify.ir.grouped_linear import GROUPED_LINEAR
from sparsify.ir.nodes import MASK_OPERATORS, Stage, apply_random_mask, is_vouched, phases_of
from sparsify.ir.sites import first_names, layouts
from sparsify.ir.traits import argument, outputs_of, state_name
from sparsify.parts.layouts import Layout

if TYPE_CHECKING:
    from sparsify.ir.program import Program


@dataclass(frozen=True)
class Violation:
    """A broken rule: its id, where (a qualified name or a node), and what was found."""

    rule: str
    where: str
    found: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.where}: {self.found}"


class Tables:
    """Tables that the rules look up. They are computed once per `violations` call, so each rule is linear in the number of nodes.

    Attributes:
        program: the program that is checked.
        nodes: the nodes of each phase, in graph order.
        parameters: every parameter by each of its names.
        buffers: every buffer by each of its names.
        first: the first name of each parameter, by each of its names.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes: dict[str, list[Any]] = {phase: list(module.graph.nodes) for phase, module in program.phases.items()}
        self.parameters = dict(program.named_parameters(remove_duplicate=False))
        self.buffers = dict(program.named_buffers(remove_duplicate=False))
        self.first = first_names(self.parameters)
        self._masks: dict[str, dict[str, tuple[str, str]]] = {}

    @functools.cached_property
    def layouts(self) -> dict[str, Layout]:
        """The layouts of the weights that are stored compact, by name."""
        return layouts(self.program)

    def masks(self, phase: str) -> dict[str, tuple[str, str]]:
        """Return mask and pattern of each weight that the phase masks, by the weight's first name."""
        if phase not in self._masks:
            self._masks[phase] = {
                self.first[state_name(node, "weight")]: (state_name(node, "mask"), str(argument(node, "pattern")))
                for node in self.nodes[phase]
                if node.target in MASK_OPERATORS
            }
        return self._masks[phase]

    def read(self, phase: str) -> set[str]:
        """Return the first names of the parameters that the phase reads."""
        targets = (str(node.target) for node in self.nodes[phase] if node.op == "get_attr")
        return {self.first[target] for target in targets if target in self.first}


Rule = Callable[[Tables], Iterator[Violation]]


def state_missing(tables: Tables) -> Iterator[Violation]:
    """Yield every ``get_attr`` and ``call_module`` node names existing state."""
    tensors = tables.parameters.keys() | tables.buffers.keys()
    modules = {name for name, _ in tables.program.named_modules(remove_duplicate=False)}
    for phase in tables.nodes:
        for node in tables.nodes[phase]:
            if node.op == "get_attr" and node.target not in tensors:
                yield Violation(
                    "state-missing", str(node.target), f"%{node.name} of {phase} reads state that does not exist"
                )
            if node.op == "call_module" and node.target not in modules:
                yield Violation(
                    "state-missing", str(node.target), f"%{node.name} of {phase} calls a module that does not exist"
                )


def spec_missing(tables: Tables) -> Iterator[Violation]:
    """Yield every parameter node has a spec that agrees with the parameter's shape."""
    shapes = {name: tuple(p.shape) for name, p in tables.parameters.items()}
    for phase in tables.nodes:
        for node in tables.nodes[phase]:
            if node.op == "get_attr" and node.target in shapes:
                spec = node.meta.get("spec")
                if spec is None or spec.shape != shapes[node.target]:
                    yield Violation(
                        "spec-missing",
                        str(node.target),
                        f"%{node.name} of {phase} says {spec}, the parameter has {shapes[node.target]}",
                    )


def phases_missing(tables: Tables) -> Iterator[Violation]:
    """Yield a program has the phases of its stage: train and eval, or eval only once it is deployed; and is in the mode of one of them."""
    stage, found = tables.program.stage, tuple(tables.nodes)
    if found != phases_of(stage):
        yield Violation(
            "phases-missing", stage.value, f"has {' and '.join(found)}, not {' and '.join(phases_of(stage))}"
        )
    if tables.program.training and "train" not in found:
        yield Violation("phases-missing", stage.value, "is in train mode, and has no train phase")


def inputs_disagree(tables: Tables) -> Iterator[Violation]:
    """Yield every phase takes the inputs of the program."""
    for phase, nodes in tables.nodes.items():
        names = [node.name for node in nodes if node.op == "placeholder"]
        if len(names) != len(tables.program.input_specs):
            wanted = [spec.name for spec in tables.program.input_specs]
            yield Violation("inputs-disagree", phase, f"takes {names}, the program {wanted}")


def phases_disagree(tables: Tables) -> Iterator[Violation]:
    """Yield both phases mask the same weights with the same masks and patterns."""
    masks = {phase: tables.masks(phase) for phase in tables.nodes}
    used = tables.read("train") & tables.read("eval")
    for weight in sorted(masks["train"].keys() | masks["eval"].keys()):
        train, evaluation = masks["train"].get(weight), masks["eval"].get(weight)
        if train != evaluation and weight in used:
            yield Violation("phases-disagree", weight, f"train has mask {train}, eval has {evaluation}")


def outputs_named(tables: Tables) -> Iterator[Violation]:
    """Yield every flat output has a name of its own."""
    for phase in tables.nodes:
        node = tables.nodes[phase][-1]
        names = node.meta.get("names", ())
        if len(names) != len(outputs_of(node)) or len(set(names)) != len(names):
            yield Violation("outputs-named", phase, f"outputs {outputs_of(node)} are named {names}")


def mask_bypassed(tables: Tables) -> Iterator[Violation]:
    """Yield every use of a masked weight goes through its mask."""
    masked = {weight for phase in tables.nodes for weight in tables.masks(phase)}
    for phase in tables.nodes:
        for node in tables.nodes[phase]:
            if node.op == "get_attr" and tables.first.get(str(node.target)) in masked:
                for user in node.users:
                    if user.target not in MASK_OPERATORS:
                        yield Violation("mask-bypassed", str(node.target), f"also read by %{user.name} of {phase}")


def mask_malformed(tables: Tables) -> Iterator[Violation]:
    """Yield a mask is a bool buffer ``<weight>_mask`` of its weight's shape."""
    for weight, (mask, _) in tables.masks("train").items():
        value, stored = tables.program.get_buffer(mask), tables.layouts.get(weight)
        shape = tables.parameters[weight].shape if stored is None else stored.shape
        if mask != f"{weight}_mask" or value.dtype is not torch.bool or value.shape != shape:
            yield Violation("mask-malformed", weight, f"mask {mask!r} is {value.dtype} {tuple(value.shape)}")


def inactive_nonzero(tables: Tables) -> Iterator[Violation]:
    """Inactive weights are exactly 0 if a lowered mask reads the weight unmasked because a trainer vouches for it."""
    lowered = {
        state_name(node, "weight"): state_name(node, "mask")
        for nodes in tables.nodes.values()
        for node in nodes
        if node.target is MASK_OPERATORS[1]
    }
    for weight, mask in lowered.items():
        value, kept = tables.parameters[weight], tables.program.get_buffer(mask)
        stray = count_stray(value, kept) if is_vouched(value, kept) else 0
        if stray:
            yield Violation("inactive-nonzero", weight, f"{stray} inactive weights are not 0 under a lowered mask")


def compact_malformed(tables: Tables) -> Iterator[Violation]:
    """Yield every weight that is stored compact without a position for each that its mask has active, and for no other."""
    for weight, layout in tables.layouts.items():
        shape = tuple(tables.parameters[weight].shape)
        if shape != layout.compact_shape:
            yield Violation("compact-malformed", weight, f"has shape {shape}, its layout {layout.compact_shape}")
        elif not torch.equal(layout.mask(), tables.program.mask(weight)):
            yield Violation("compact-malformed", weight, "its mask is not that of the stored positions")


def random_mask_malformed(tables: Tables) -> Iterator[Violation]:
    """Yield a random mask stands only in the train phase; it is a bool buffer ``<weight>_visible`` of its weight's shape."""
    for phase in tables.nodes:
        for node in tables.nodes[phase]:
            if node.target is not apply_random_mask:
                continue
            visible = state_name(node, "visible")
            value = tables.program.get_buffer(visible)
            name = visible.removesuffix("_visible")
            weight, stored = tables.parameters.get(name), tables.layouts.get(name)
            if phase != "train":
                yield Violation("random-mask-malformed", node.name, f"a random mask in {phase}")
            elif (
                weight is None
                or value.dtype is not torch.bool
                or value.shape != (weight.shape if stored is None else stored.shape)
            ):
                yield Violation("random-mask-malformed", visible, f"is {value.dtype} {tuple(value.shape)}")


def masks_absent(tables: Tables) -> Iterator[Violation]:
    """Yield a folded or deployed program has no mask, tap or mask buffer left."""
    for phase in tables.nodes:
        for node in tables.nodes[phase]:
            if node.target in (*MASK_OPERATORS, apply_random_mask) or node.op == "call_module":
                yield Violation("masks-absent", node.name, f"left in {phase} of a {tables.program.stage.value} program")
    for name, value in tables.buffers.items():
        if name.endswith("_mask") and value.dtype is torch.bool and name[:-5] in tables.parameters:
            yield Violation("masks-absent", name, f"buffer left in a {tables.program.stage.value} program")


def packing_malformed(tables: Tables) -> Iterator[Violation]:
    """Yield a packed layer reads only existing inputs, as many as its weight has columns, and has one bias per output or none."""
    for phase, nodes in tables.nodes.items():
        for node in nodes:
            if node.target is not GROUPED_LINEAR:
                continue
            source, weight, inputs, bias, chunk = node.args
            shape, spec = weight.meta["spec"].shape, source.meta.get("spec")
            features = spec.shape[0] if spec is not None else None
            if inputs is not None:
                index = tables.program.tensor(str(inputs.target))
                fits = index.dtype is torch.int64 and (*index.shape[:-1], index.shape[-1] * chunk) == (
                    *shape[:-2],
                    shape[-1],
                )
                if not fits or (isinstance(features, int) and not _within(index, features // chunk)):
                    yield Violation(
                        "packing-malformed", node.name, f"reads inputs {inputs.target} of {phase} that do not fit"
                    )
            if bias is not None and bias.meta["spec"].shape != (math.prod(shape[:-1]),):
                yield Violation(
                    "packing-malformed", node.name, f"has weight {shape} and bias {bias.meta['spec'].shape}"
                )


def _within(index: Tensor, count: int) -> bool:
    return not index.numel() or (int(index.min()) >= 0 and int(index.max()) < count)


_ALWAYS: tuple[Rule, ...] = (phases_missing, state_missing, spec_missing, inputs_disagree, outputs_named)
_TRAINED: tuple[Rule, ...] = (*_ALWAYS, phases_disagree)
RULES: dict[Stage, tuple[Rule, ...]] = {
    Stage.TRACED: (*_TRAINED, random_mask_malformed),
    Stage.MASKED: (
        *_TRAINED,
        mask_bypassed,
        mask_malformed,
        inactive_nonzero,
        random_mask_malformed,
        compact_malformed,
    ),
    Stage.FOLDED: (*_TRAINED, masks_absent),
    Stage.DEPLOYED: (*_ALWAYS, masks_absent, packing_malformed),
}


def violations(program: Program) -> list[Violation]:
    """Return all violations of the rules of the program's stage."""
    tables = Tables(program)
    missing = list(state_missing(tables))
    return missing or [violation for rule in RULES[program.stage] for violation in rule(tables)]


def count_stray(weight: Tensor, mask: Tensor) -> int:
    """Return how many inactive weights are not 0."""
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
