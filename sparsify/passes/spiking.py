"""``spiking``: turn a network with ReLUs into one with leaky integrate-and-fire neurons over several steps of time."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from sparsify.errors import PassError
from sparsify.ir import PHASES, Program, Stage, TensorSpec, surgery
from sparsify.ir.axes import shape_of
from sparsify.ir.dimensions import BATCH, mentions, multiplied
from sparsify.ir.neurons import lif, mean_of_steps, repeat_steps, steps_of
from sparsify.ir.traits import argument, input_of, kind_of, named_outputs, traits
from sparsify.parts.neurons import RESETS
from sparsify.parts.surrogates import SURROGATES
from sparsify.passes.base import CHANGED, Effect, Kept, Pass, PassLog
from sparsify.passes.in_place import make_functional
from sparsify.passes.options import Range, option

ENCODINGS = ("direct", "frames")
LEARNED = ("none", "leak", "threshold", "both")
ANALOGUE = (
    "gelu", "silu", "mish", "elu", "celu", "selu", "leaky_relu", "prelu", "rrelu", "hardswish", "hardsigmoid", "sigmoid", "tanh",
    "softplus", "hardtanh", "softsign", "log_sigmoid",
)  # fmt: skip
"""Activations that are no ReLU, which stay as they are."""


@dataclass(frozen=True)
class Spiking(Pass):
    """Replace every ReLU by a layer of neurons (`sparsify.parts.neurons.Neuron`), and compute the network over ``steps`` steps of time.

    Steps lie in the first dimension, as a larger batch: all layers but the neurons compute all steps at once, batch norms share their
    statistics over the steps, and outputs are means over them. ``encoding=direct`` gives the network its inputs in every step; what
    comes before the first neurons is computed once. ``encoding=frames`` is for a model that itself lays the frames of a sequence out in
    the first dimension, [steps * N, ...], and joins them at its end (`sparsify.PerStep`); only its ReLUs are replaced.

    Raises:
        PassError: If the program has no ReLU, or neurons already; its batch does not vary; a value that the steps share has its batch
            elsewhere than in its first dimension; or a glob of ``keep`` matches nothing.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> spiking = sp.Pipeline.parse("spiking{steps=8}")(sp.trace(model, torch.rand(2, 4)))
        >>> tuple(spiking(torch.rand(5, 4)).shape)
        (5, 2)
    """

    name: ClassVar = "spiking"
    requires: ClassVar = (Stage.TRACED, Stage.MASKED)
    effects: ClassVar = Effect.GRAPH | Effect.NAMES

    steps: int = option(4, "steps of time", within=Range(1, 4096))
    reset: str = option(
        "soft", "what firing does to the potential: soft subtracts the threshold, hard sets it to 0", choices=RESETS
    )
    leak: float = option(0.5, "share of the potential that stays from step to step", within=Range(0, 1))
    threshold: float = option(1.0, "potential from which a neuron fires", within=Range(0, open_low=True))
    surrogate: str = option("atan", "whose derivative stands for that of firing", choices=SURROGATES)
    slope: float | None = option(None, "of the surrogate; its own default by default", within=Range(0, open_low=True))
    encoding: str = option(
        "direct", "direct: inputs in every step; frames: the model lays out steps itself", choices=ENCODINGS
    )
    decay_input: bool = option(False, "multiply currents by 1 - leak")
    detach_reset: bool = option(False, "let gradients ignore that firing resets the potential")
    through_time: bool = option(True, "let gradients reach earlier steps through the potential")
    learn: str = option("none", "parameters of each layer of neurons that are trained", choices=LEARNED)
    keep: tuple[str, ...] = option((), "globs of the modules whose ReLUs stay")

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return dict.fromkeys(PHASES, CHANGED)

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        if not program.dynamic_batch:
            raise PassError(
                f"{self.name}: {program.name!r} was traced with a fixed batch size, and steps of time are a larger batch. Let forward "
                f"compute with the sizes of its inputs (x.shape[0]) in place of numbers, and trace it again."
            )
        if any(kind_of(node) == "neuron" for phase in PHASES for node in program.phases[phase].graph.nodes):
            raise PassError(
                f"{self.name}: {program.name!r} has layers of neurons already. Begin with a trace of the model."
            )
        for phase in PHASES:
            make_functional(program, phase)
        found = {phase: self._sites(program, phase, log if phase == "eval" else None) for phase in PHASES}
        names = self._names(program, found)
        for phase in PHASES:
            _Rewrite(self, program, phase, dict(zip(found[phase], names, strict=True))).run()
        for name in names:
            log.change(name)
        return log

    def _sites(self, program: Program, phase: str, log: PassLog | None) -> list[fx.Node]:
        """Find the ReLUs that are replaced, in graph order."""
        found, kept = list[fx.Node](), set[str]()
        for node in program.phases[phase].graph.nodes:
            owner = _owner(node)
            globs = {glob for glob in self.keep if fnmatch.fnmatchcase(owner, glob)}
            if _is_relu(node):
                kept |= globs
                if not globs:
                    found.append(node)
                elif log is not None:
                    log.skip(owner, "asked to stay")
            elif log is not None and traits(node).name in ANALOGUE:
                log.skip(owner, f"{traits(node).name} is no ReLU")
        for glob in self.keep:
            if glob not in kept:
                owners = ", ".join(dict.fromkeys(_owner(node) for node in found)) or "none"
                raise PassError(
                    f"{self.name}: keep={glob!r} matches no module with a ReLU. Modules with one: {owners}."
                )
        if not found:
            raise PassError(
                f"{self.name}: {program.name!r} has no ReLU to replace. Build the model with ReLUs where neurons should be."
            )
        return found

    def _names(self, program: Program, found: Mapping[str, Sequence[fx.Node]]) -> list[str]:
        """Register the leak and threshold of each layer of neurons; returns the paths that hold them."""
        owners = {phase: [_owner(node) for node in nodes] for phase, nodes in found.items()}
        if owners["train"] != owners["eval"]:
            raise PassError(
                f"{self.name}: the ReLUs of {program.name!r} are in {owners['train']} in training and in {owners['eval']} in eval mode. "
                f"Use the same ones in both."
            )
        holding = {name.rpartition(".")[0] for name, _ in (*program.named_parameters(), *program.named_buffers())}
        names = list[str]()
        for node, owner in zip(found["train"], owners["train"], strict=True):
            single = owners["train"].count(owner) == 1 and owner not in holding and node.meta.get("owner")
            name = (
                owner if single else ".".join(filter(None, (str(node.meta.get("owner") or ""), f"neurons_{node.name}")))
            )
            dtype = getattr(torch, node.meta["spec"].dtype)
            for what, value in (("leak", self.leak), ("threshold", self.threshold)):
                made: Tensor = torch.tensor(value, dtype=dtype)
                surgery.add_state(
                    program, f"{name}.{what}", nn.Parameter(made) if self.learn in (what, "both") else made
                )
            names.append(name)
        return names


class _Rewrite:
    """Rewrites one phase. Values downstream of neurons are *timed*: their first dimension holds all steps."""

    def __init__(self, step: Spiking, program: Program, phase: str, sites: Mapping[fx.Node, str]) -> None:
        self.step, self.program, self.phase, self.sites = step, program, phase, sites
        self.timed = set[fx.Node]()
        self.made = dict[
            fx.Node, fx.Node
        ]()  # by value that is the same in every step: what timed operators read in its place

    def run(self) -> None:
        for node in list(self.program.phases[self.phase].graph.nodes):
            if node.op == "output":
                self._outputs(node)
            elif node in self.sites:
                self._fire(node, self.sites[node])
            elif self.step.encoding == "direct" and not self.timed.isdisjoint(node.all_input_nodes):
                self._let_read(node)
                self._stretch(node)

    def _fire(self, node: fx.Node, name: str) -> None:
        """Replace a ReLU by neurons."""
        current, steps, direct = input_of(node), self.step.steps, self.step.encoding == "direct"
        first = shape_of(node)[0] if shape_of(node) else None
        wanted = BATCH if direct else multiplied(BATCH, BATCH, steps)
        if current not in self.timed and first != wanted:
            raise PassError(
                f"{self.step.name}: the ReLU of {_owner(node)!r} (%{node.name} of {self.phase}) has values of shape "
                f"{list(shape_of(node))}, and the first dimension should be {wanted}"
                + (", the batch. Keep it with keep=..., or move the batch to the front." if direct else
                   ": the model should lay its steps out in the first dimension, as sparsify.PerStep does.")
            )  # fmt: skip
        given = [
            surgery.state_node(self.program, self.phase, f"{name}.{what}", before=node)
            for what in ("leak", "threshold")
        ]
        repeated = direct and current not in self.timed
        options = (self.step.reset, self.step.surrogate, self.step.slope, self.step.decay_input, self.step.detach_reset,
                   self.step.through_time)  # fmt: skip
        made = surgery.call_after(self.program, self.phase, node, lif, (current, *given, steps, repeated, *options))
        surgery.bypass(self.program, self.phase, node, made)
        self._stretch(made) if direct else self.timed.add(made)

    def _stretch(self, node: fx.Node) -> None:
        self.timed.add(node)
        spec = node.meta.get("spec")
        if isinstance(spec, TensorSpec):
            surgery.reshape_spec(node, [multiplied(size, BATCH, self.step.steps) for size in spec.shape])

    def _let_read(self, node: fx.Node) -> None:
        """Let a timed operator read what is the same in every step as often as there are steps."""
        for value in node.all_input_nodes:
            if value not in self.timed and (stretched := self._stretched(value)) is not value:
                surgery.reroute(value, stretched, users=[node])

    def _stretched(self, value: fx.Node) -> fx.Node:
        """Return what stands for a value that is the same in every step: it repeated, its multiple if it is a size, or itself."""
        if value in self.made:
            return self.made[value]
        made, shape = value, shape_of(value)
        if any(mentions(size, BATCH) for size in shape):
            if shape[0] != BATCH or any(mentions(size, BATCH) for size in shape[1:]):
                raise PassError(
                    f"{self.step.name}: %{value.name} of {self.phase}, of shape {list(shape)}, is read after neurons, and its batch is "
                    f"not its first dimension alone. Move the batch to the front there."
                )
            spec = value.meta["spec"].of_shape([multiplied(size, BATCH, self.step.steps) for size in shape])
            made = surgery.call_after(
                self.program, self.phase, value, repeat_steps, (value, self.step.steps), spec=spec
            )
        elif not shape and value.op == "call_function" and not isinstance(value.meta.get("spec"), TensorSpec):
            made = self._size(value)
        self.made[value] = made
        return made

    def _size(self, value: fx.Node) -> fx.Node:
        """Return the node of a size at the batch of all steps."""
        if traits(value).name == "sym_size":
            shape = shape_of(input_of(value))
            if shape and mentions(shape[argument(value, "dim")], BATCH):
                return surgery.call_after(self.program, self.phase, value, steps_of, (value, self.step.steps))
            return value
        swapped = {given: self._stretched(given) for given in value.all_input_nodes}
        if all(given is stands for given, stands in swapped.items()):
            return value
        last = max(swapped.values(), key=[*self.program.phases[self.phase].graph.nodes].index)
        anchor = last if last not in value.all_input_nodes else value
        return surgery.call_like(self.program, self.phase, anchor, value, swapped, spec=None)

    def _outputs(self, output: fx.Node) -> None:
        for name, value in named_outputs(output).items():
            if not isinstance(value, fx.Node) or value not in self.timed or self.step.encoding != "direct":
                continue
            shape, steps = shape_of(value), self.step.steps
            if not value.meta["spec"].dtype.startswith(("float", "bfloat")):
                raise PassError(
                    f"{self.step.name}: the output {name!r} of {self.phase} holds {value.meta['spec'].dtype}, which cannot be averaged "
                    f"over steps. Compute it outside the model."
                )
            if not shape or shape[0] != multiplied(BATCH, BATCH, steps):
                raise PassError(
                    f"{self.step.name}: the output {name!r} of {self.phase}, of shape {list(shape)}, does not have the batch in its first "
                    f"dimension, so it cannot be averaged over steps. Return values for each sample."
                )
            spec = value.meta["spec"].of_shape([BATCH, *shape[1:]])
            made = surgery.call_after(self.program, self.phase, value, mean_of_steps, (value, steps), spec=spec)
            surgery.replace_output(self.program, self.phase, name, made)


def _is_relu(node: fx.Node) -> bool:
    name = traits(node).name
    return name in ("relu", "relu6") or (name == "hardtanh" and not argument(node, "min_val"))


def _owner(node: fx.Node) -> str:
    return str(node.meta.get("owner") or node.name)
