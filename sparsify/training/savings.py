"""Counts what the steps of a run compute and hold, beside a dense run: multiply-accumulates, and bytes of weights, gradients and state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparsify.ir import Program
from sparsify.ir.sites import mask_names
from sparsify.ir.step_macs import StepMacs, step_macs
from sparsify.parts.top import ones
from sparsify.training.active_steps import ActiveSteps
from sparsify.training.compact_weights import CompactWeights
from sparsify.training.mechanism import Mechanism
from sparsify.training.optimizers import Optimizers
from sparsify.training.rounds import Rounds


@dataclass(frozen=True)
class Bytes:
    """Bytes of the tensors that a training step holds at its end.

    Attributes:
        weights: all parameters of the program.
        gradients: their gradients, and dense gradients that were recorded for a round.
        optimizer: state of the optimizers.
        masks: masks, and the indices of what is stored compact.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    masks: int = 0

    @property
    def total(self) -> int:
        """The sum of the four."""
        return self.weights + self.gradients + self.optimizer + self.masks


@dataclass(frozen=True)
class Savings:
    """What the steps of a run computed and held, beside a dense run of the same program and optimizer.

    Corrections, attacks and teachers evaluate batches besides the step's own. Those are in the counts of the trainer and not in these
    figures, and neither are activations, averages of weights and what scores remember.

    Attributes:
        steps: number of steps so far.
        macs_dense: multiply-accumulates per sample of a step in which all weights are dense.
        macs: sums over all steps of the multiply-accumulates per sample. A compact weight takes its active share, and in a round the whole
            product for each dense gradient that is computed; a weight that is stored dense with a mask takes as many as without.
        bytes_dense: bytes of a dense run.
        bytes_peak: bytes at the end of the step that held most, before its round.
        bytes_end: bytes at the end of the last step that was counted, while weights were still compact.
        mean_density: the density, active / maskable, of a step's masks, as a mean over the steps; 1.0 without masks or steps. It is what a
            method costs that starts denser than it ends, however its weights are stored.
    """

    steps: int
    macs_dense: StepMacs
    macs: StepMacs
    bytes_dense: Bytes
    bytes_peak: Bytes
    bytes_end: Bytes
    mean_density: float = 1.0

    @property
    def macs_share(self) -> float:
        """The multiply-accumulates of all steps divided by those of as many dense ones; 1.0 before the first step."""
        dense = self.steps * self.macs_dense.total
        return self.macs.total / dense if dense else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return numbers for JSON, with the mean of ``macs`` per step in place of its sum."""
        mean = {key: count / max(self.steps, 1) for key, count in dataclasses.asdict(self.macs).items()}
        return {**dataclasses.asdict(self), "macs": mean}


class Ledger(Mechanism):
    """Keeps account of what the steps of a run compute and hold. It acts first after a step, before a round changes masks.

    Bytes are counted after the first step, after each change of masks or forms, and where a round reads dense gradients. Between those,
    what is held stays the same. With an optimizer that evaluates the batch itself (LBFGS), they are counted after every step.

    Args:
        program, optimizers: of the run.
        rounds: the rounds, which compute dense gradients of compact weights.
        stored: the weights that are stored compact.
        active: the optimizers' state of active positions.
        counts: the counts of the trainer.
    """

    key = "savings"

    def __init__(
        self,
        program: Program,
        optimizers: Optimizers,
        rounds: Rounds,
        stored: CompactWeights,
        active: ActiveSteps,
        counts: Mapping[str, int],
    ) -> None:
        self._program, self._optimizers, self._counts = program, optimizers, counts
        self._rounds, self._stored, self._active = rounds, stored, active
        self._macs: dict[str, StepMacs] = {}
        self._form: tuple[int, int] | None = None
        self._now = StepMacs()
        self._steps, self._sum, self._alike = 0, StepMacs(), 0
        self._positions, self._positions_now, self._maskable = 0, 0, 0
        self._dense, self._peak, self._end = Bytes(), Bytes(), Bytes()

    def start(self) -> None:
        self._macs = step_macs(self._program)
        self._maskable = sum(mask.numel() for mask in self._program.masks().values())

    def after_step(self, step: int, moved: bool) -> None:
        form = self._counts["rounds"], len(self._stored.layouts)
        if form != self._form:
            self._sum, self._positions, self._alike = self._macs_so_far(), self._active_so_far(), 0
            self._now, self._positions_now = self._step_macs(), sum(map(ones, self._program.masks().values()))
            self._weigh()
            self._form = form if moved else None
        elif self._optimizers.evaluates or self._rounds.due(step):
            self._weigh()
        self._steps += 1
        self._alike += 1

    def _macs_so_far(self) -> StepMacs:
        """Add the steps since the last change, which all compute the same, to the sum before it."""
        return self._sum + self._now.times(self._alike)

    def _active_so_far(self) -> int:
        """Add the active positions of the steps since the last change to the sum before it."""
        return self._positions + self._positions_now * self._alike

    def _step_macs(self) -> StepMacs:
        """Count what a step computes with the present compact weights, besides dense gradients of rounds."""
        found = StepMacs()
        for name, macs in self._macs.items():
            layout = self._stored.layouts.get(name)
            found += macs if layout is None else macs.times(layout.inputs.shape[1], layout.shape[1])
        return found

    def _weigh(self) -> None:
        """Count the bytes that are held now, and those of a dense run."""
        held: dict[str, int] = dict.fromkeys(("weights", "gradients", "optimizer"), 0)
        dense = dict(held)
        for name, weight in self._program.named_parameters():
            stored = tuple(weight.shape)
            selected = self._active.layout_of(weight)
            shapes = (stored,) if selected is None else (stored, selected.compact_shape)
            positions = math.prod(self._stored.layouts[name].shape) if name in self._stored.layouts else weight.numel()
            state = self._optimizers.state.get(weight, {})
            for key, value in (("weights", weight), ("gradients", weight.grad), ("optimizer", state)):
                for tensor in _tensors(value):
                    size = _bytes(tensor)
                    held[key] += size
                    per_position = tuple(tensor.shape) in shapes and not tensor.is_sparse
                    dense[key] += positions * tensor.element_size() if per_position else size
        recorded = sum(_bytes(tap.recorded) for tap in self._stored.taps.values() if tap.recorded is not None)
        self._end = Bytes(**held, masks=self._masks())
        now = dataclasses.replace(self._end, gradients=self._end.gradients + recorded)
        self._peak = max(self._peak, now, key=lambda found: found.total)
        self._dense = max(self._dense, Bytes(**dense), key=lambda found: found.total)

    def _masks(self) -> int:
        """Count the bytes of masks, random masks, and the indices of what is stored compact."""
        buffers, found = dict(self._program.named_buffers()), dict[int, Tensor]()
        for name in mask_names(self._program):
            layout, selected = self._stored.layouts.get(name), self._active.layout_of(self._program.get_parameter(name))
            given = [buffers.get(f"{name}_{end}") for end in ("mask", "visible", "inputs", "places")]
            given += [] if layout is None else [layout.inputs, layout.order]
            given += [] if selected is None else [selected.flat]
            found |= {tensor.data_ptr(): tensor for tensor in given if tensor is not None}
        return sum(map(_bytes, found.values()))

    @property
    def found(self) -> Savings:
        """What was counted so far."""
        computed = self._rounds.computed.items()
        possible = self._maskable * self._steps
        extra = sum(self._macs[name].weights * times for name, times in computed if name in self._macs)
        return Savings(
            steps=self._steps,
            macs_dense=sum(self._macs.values(), StepMacs()),
            macs=self._macs_so_far() + StepMacs(weights=extra),
            bytes_dense=self._dense,
            bytes_peak=self._peak,
            bytes_end=self._end,
            mean_density=self._active_so_far() / possible if possible else 1.0,
        )

    def state_dict(self) -> dict[str, Any]:
        sums = {
            key: str(count) for key, count in dataclasses.asdict(self._macs_so_far()).items()
        }  # they may be above 2 ** 53
        held = {"dense": self._dense, "peak": self._peak, "end": self._end}
        active = str(self._active_so_far())
        return {
            "steps": self._steps,
            "sum": sums,
            "active": active,
            **{key: dataclasses.asdict(value) for key, value in held.items()},
        }

    def load_state_dict(self, state: Any) -> None:
        self._form, self._steps, self._alike = None, int(state["steps"]), 0
        self._sum = StepMacs(**{key: int(count) for key, count in state["sum"].items()})
        self._positions = int(state["active"])
        self._dense, self._peak, self._end = (Bytes(**state[key]) for key in ("dense", "peak", "end"))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value of nested tables and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(inner)


def _bytes(tensor: Tensor) -> int:
    parts = (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,)
    return sum(part.numel() * part.element_size() for part in parts)
