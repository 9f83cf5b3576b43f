"""Topology updates: the only code that changes masks. It also keeps inactive weights at 0."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Collection, Container, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import TrainingError, TrainingWarning
from sparsify.ir import Program
from sparsify.methods.base import GROWN_IN_SHORT_RUNS
from sparsify.parts import coverage
from sparsify.parts.allocation import needs_gradient
from sparsify.parts.patterns import Pattern
from sparsify.parts.patterns.grouped import bound_together
from sparsify.parts.schedules import Schedule
from sparsify.parts.scores import Score, View
from sparsify.parts.top import ones
from sparsify.parts.topology import DropAndGrow, InTurn, Move, Prune, Topology, dropped_and_grown, update
from sparsify.training.compact_weights import CompactWeights
from sparsify.training.gradients import Gradients
from sparsify.training.mechanism import Mechanism
from sparsify.training.optimizers import Optimizers
from sparsify.training.selection import layers, layers_of, patterns_of, select_masks, shapes_of, together

SHORT = range(100, 500)
"""Numbers of steps for which a run is short for growth by gradient; fewer are only a trial of the loop, without real training."""
CLOSE = 100
"""In a short run, fewer steps than this between rounds leave positions grown by gradient too little time."""
SEARCHED = 1_000_000
"""How many steps beyond the end of a run are searched for the first round, for the message."""


class Rounds(Mechanism):
    """Applies the topology of a method to a masked program.

    Args:
        topology: the rule of rounds; None: masks never change.
        program: the program, which may get its masks later.
        optimizer: its state is cleared where masks change.
        gradients: checks the gradients of each step; recorded dense gradients have the same scale.
        counts: counts of the trainer; rounds are added to them.
        generator: generator of random growth.
        stored: which weights are stored compact; they move where masks change.

    Attributes:
        visited: by weight, which positions have been active (`sparsify.parts.coverage`).
        grown: by weight, how many positions rounds have activated.
        computed: by weight, how many dense gradients rounds have computed of it while it was stored compact.
        first, last: the steps of the first and the last round, 0 without rounds.
        last_pruning: the step of the last pruning, 0 without one.
    """

    key = "rounds"

    def __init__(
        self,
        topology: Topology | None,
        program: Program,
        optimizer: Optimizers,
        gradients: Gradients,
        counts: dict[str, int],
        generator: torch.Generator,
        stored: CompactWeights,
    ) -> None:
        self._program, self._optimizer, self._gradients, self._stored = program, optimizer, gradients, stored
        self._counts, self._generator = counts, generator
        self._topology, self.active = topology, topology is not None
        self._moves: tuple[Move, ...] = (
            topology.moves if isinstance(topology, InTurn) else tuple(filter(None, [topology]))
        )
        self.needs_gradient = any(map(_reads_gradient, self._moves))
        self.prunes = any(isinstance(move, Prune) for move in self._moves)
        self.replaces_step = any(isinstance(move, DropAndGrow) and move.replaces_step for move in self._moves)
        self._patterns: dict[str, Pattern] = {}
        self._hidden: Container[str] = ()
        self._armed = False
        self._states: dict[str, dict[str, Any]] = {}
        self.visited: dict[str, Tensor] = {}
        self.grown: dict[str, int] = {}
        self.computed: dict[str, int] = {}
        self.first = self.last = self.last_pruning = 0

    def check(self, method: str, density: float, total_steps: int) -> None:
        """Check before the first step that rounds will happen, and that prunings can end at this density.

        Raises:
            TrainingError: If a move is never due, or the density is not reached by the end.
            AllocationError: If the density cannot be met.
        """
        for move in self._moves:
            last = next((step for step in range(total_steps, 0, -1) if move.when(step)), None)
            if last is None:
                first = next((step for step in range(total_steps + 1, total_steps + SEARCHED) if move.when(step)), None)
                raise TrainingError(
                    f"method {method!r} would make no round in a run of {total_steps} steps: "
                    f"{'none is due at all' if first is None else f'the first is due on step {first}'}. Lower update_every, let masks "
                    f"change for longer (stop_at), or train longer."
                )
            first = next(step for step in range(1, last + 1) if move.when(step))
            self.first, self.last = min(self.first or first, first), max(self.last, last)
            self._say_if_short(move, method, total_steps, first, last)
            density_at = _density(move)
            if density_at is not None:
                reached = density_at(last)
                if reached > density * (1 + 1e-9):
                    raise TrainingError(
                        f"method {method!r} would end at density {reached:.4g}, not at {density:.4g}: its last pruning in a run of "
                        f"{total_steps} steps is on step {last}. Let it end earlier (stop_at), or train longer."
                    )
                self.last_pruning = max(self.last_pruning, last)
                if density_at(last - 1) > reached and not any(map(move.when, range(1, last))):
                    warnings.warn(
                        f"method {method!r} prunes gradually, but only one pruning is due in a run of {total_steps} steps, on step {last}. "
                        f"Lower update_every, or train longer.",
                        TrainingWarning,
                        stacklevel=4,
                    )
            if isinstance(move, Prune):
                move.allocation(layers_of(self._program, graded=needs_gradient(move.allocation)), density)
            elif move.budgets is not None:
                move.budgets.at(last, shapes_of(patterns_of(self._program), self._program.masks()))

    def _say_if_short(self, move: Move, method: str, total_steps: int, first: int, last: int) -> None:
        """Warn of growth by gradient from a sparse start in a short run, with what was measured."""
        if self.prunes or not isinstance(move, DropAndGrow) or move.budgets is not None:
            return
        if not move.grow_by.needs_gradient or total_steps not in SHORT:
            return
        later = sum(map(move.when, range(first + 1, last + 1)))
        if later and (last - first) / later < CLOSE:
            between = round((last - first) / later)
            told = GROWN_IN_SHORT_RUNS.format(method=method, total=total_steps, between=between)
            warnings.warn(told, TrainingWarning, stacklevel=5)

    @property
    def span(self) -> dict[str, int]:
        """``first_round`` and ``last_round``; empty without rounds."""
        return {"first_round": self.first, "last_round": self.last} if self.last else {}

    def start(self) -> None:
        """Initialise the states of the scores from the present weights and masks."""
        masks, self._patterns = self._program.masks(), patterns_of(self._program)
        self._hidden = {site.weight for site in self._program.random_mask_sites()}
        for index, move in enumerate(self._moves):
            for slot, score in _scores(move).items():
                self._states[f"{index}.{slot}"] = {
                    name: score.init(self._program.weight(name).detach()) for name in masks
                }
        self.visited = {name: coverage.visit(None, mask) for name, mask in masks.items()}
        self.grown, self.computed = dict.fromkeys(masks, 0), dict.fromkeys(masks, 0)

    def link(self, step: int) -> None:
        """Arm the taps of the program; a copy of a program has its own."""
        self._stored.find_taps()
        self._armed = True
        self.arm(step)

    def due(self, step: int) -> bool:
        """Return whether a round ends this step."""
        return self._topology is not None and self._topology.when(step)

    def replaces(self, step: int) -> bool:
        """Return whether the round of this step replaces the optimizer's step."""
        return self.replaces_step and any(
            isinstance(m, DropAndGrow) and m.replaces_step and m.when(step) for m in self._moves
        )

    def reads_gradient(self, step: int) -> bool:
        """Return whether a round of this step reads the dense gradient."""
        return self.needs_gradient and any(m.when(step) and _reads_gradient(m) for m in self._moves)

    def forget_gradients(self) -> None:
        """Discard recorded gradients, because the batch is evaluated again."""
        for tap in self._stored.taps.values():
            tap.clear()

    def arm(self, step: int) -> None:
        """Arm the taps to record the dense gradient of this step, if its round reads one."""
        due = self.reads_gradient(step)
        if not due and not self._armed:
            return
        self._armed = due
        single = sum(m.when(step) for m in self._moves) == 1  # an earlier move would clear the gradient where it prunes
        for name, tap in self._stored.taps.items():
            tap.clear()
            tap.armed = due
            # After a random mask, .grad is not dense.
            tap.in_grad = single and self.replaces(step) and name not in self._hidden and tap.holds_in_grad

    def after_step(self, step: int, moved: bool) -> None:
        """Make a round if one is due and the step was not skipped; then arm the taps for the next step."""
        if self.due(step):
            changed = moved and self.update(step)
            self._counts["rounds" if changed else "skipped_rounds"] += 1
            if changed and self._optimizer.evaluates:
                self._optimizer.state.clear()  # the optimizer remembers losses under other masks
        self.arm(step + 1)

    def update(self, step: int) -> bool:
        """Make the moves that are due. Frozen weights, and weights that the loss does not reach, keep their masks.

        Returns:
            False if the dense gradient was not finite, so that masks did not change.

        Raises:
            TrainingError: If the dense gradient did not arrive.
        """
        due = [(index, move) for index, move in enumerate(self._moves) if move.when(step)]
        still = {name for name in self._patterns if not self._program.get_parameter(name).requires_grad}
        self._name(
            still, f"are frozen since the run began (requires_grad is False), and keep their masks from step {step} on"
        )
        if any(_reads_gradient(move) for _, move in due):
            absent = {name for name in self._stored.taps if not self._arrived(name)}
            if absent == self._stored.taps.keys():
                raise TrainingError(
                    f"no dense gradient reached {', '.join(sorted(absent)[:4])} on step {step}. Call trainer.step() after "
                    f"loss.backward(), with the program in train mode during the forward pass."
                )
            still |= absent
            self._name(absent, f"have no gradient on step {step}, the loss does not reach them, and keep their masks")
            if not all(map(self._is_finite, self._stored.taps.keys() - absent)):
                for name in self._stored.taps:
                    self._stored.clear_inactive(name)
                return False
        for position, (index, move) in enumerate(due):
            match move:
                case DropAndGrow():
                    self._drop_and_grow(index, move, step, still, last=position == len(due) - 1)
                case Prune():
                    self._prune(index, move, step, still)
        self._stored.note_shapes()
        self._program.verify()
        return True

    def _arrived(self, name: str) -> bool:
        """Return whether the dense gradient of a weight was recorded."""
        tap = self._stored.taps[name]
        return (tap.passed and self._program.get_parameter(name).grad is not None) if tap.in_grad else tap.arrived

    def _is_finite(self, name: str) -> bool:
        """Return whether no entry of a dense gradient is NaN or infinite, without a copy."""
        known = self._stored.taps[name].is_bounded()
        return known or all(math.isfinite(float(end)) for end in torch.aminmax(self._dense_gradient(name).detach()))

    def _dense_gradient(self, name: str) -> Tensor:
        """Return the recorded dense gradient of a weight, without the scale of a GradScaler; that of a compact weight is computed here."""
        tap, scale = self._stored.taps[name], self._gradients.scale
        found = self._program.get_parameter(name).grad if tap.in_grad else tap.gradient
        assert found is not None
        self.computed[name] += name in self._stored.layouts
        return found if scale is None or tap.in_grad else found / scale

    def _name(self, weights: Collection[str], what: str) -> None:
        """Name weights once."""
        new = sorted(set(weights) - self._gradients.named)
        self._gradients.named.update(new)
        if new:
            warnings.warn(f"weights {', '.join(new[:8])} {what}.", TrainingWarning, stacklevel=5)

    def _rate(self, slot: str, score: Score, name: str, step: int) -> Tensor:
        view = View(
            weight=self._stored.dense(name),
            mask=self._program.mask(name),
            gradient=self._dense_gradient(name) if score.needs_gradient else None,
            step=step,
            generator=self._generator,
        )
        scores, self._states[slot][name] = score.rate(view, self._states[slot][name])
        return scores

    def _drop_and_grow(
        self,
        index: int,
        move: DropAndGrow,
        step: int,
        still: Collection[str],
        *,
        last: bool,
    ) -> None:
        fraction = move.fraction(step)
        masks = self._program.masks()
        patterns, order = dict[str, Pattern](), {name: place for place, name in enumerate(masks)}
        budgets = {} if move.budgets is None else move.budgets.at(step, shapes_of(self._patterns, masks))
        for names in together(self._program, self._patterns):
            patterns |= bound_together({name: self._patterns[name] for name in names}, masks)
        for name in sorted(masks.keys() - set(still), key=lambda name: (masks[name].numel(), order[name])):
            drop_score = functools.partial(self._rate, f"{index}.drop", move.drop_by, name, step)
            grow_score = functools.partial(self._rate, f"{index}.grow", move.grow_by, name, step)
            kept = None
            if move.exchange is not None:
                new = move.exchange(masks[name], drop_score, grow_score, fraction, last=order[name] == len(order) - 1)
            else:
                rule = {"pattern": patterns[name], "regrow_dropped": move.regrow_dropped, "budget": budgets.get(name)}
                made = masks[name], drop_score, grow_score, fraction
                kept, new = dropped_and_grown(*made, **rule) if move.restart_regrown else (None, update(*made, **rule))
            if last:
                if name in self._stored.taps:
                    self._stored.taps[name].clear()
                if move.replaces_step:
                    # No optimizer will read this gradient. The largest weight comes last, when the gradients of the others are freed.
                    self._program.get_parameter(name).grad = None
            self._set_mask(name, new, kept)

    def _prune(self, index: int, move: Prune, step: int, still: Collection[str]) -> None:
        density, masks = move.density(step), self._program.masks()
        patterns = {name: pattern for name, pattern in self._patterns.items() if name not in still}
        if not patterns:
            return
        weights = {name: self._stored.dense(name) for name in patterns}
        gradients = {name: self._dense_gradient(name) for name in patterns} if needs_gradient(move.allocation) else None
        table = layers(patterns, weights, {name: masks[name] for name in patterns}, gradients)
        fixed = next(iter(table.values())).fixed_density
        if fixed is not None and density > fixed:
            return
        budgets = {name: min(budget, table[name].most) for name, budget in move.allocation(table, density).items()}

        def scores(name: str) -> Tensor:
            return self._rate(f"{index}.prune", move.by, name, step).masked_fill(~masks[name], -1.0)

        for name, mask in select_masks(self._program, patterns, scores, budgets):
            self._set_mask(name, mask)

    def _set_mask(self, name: str, new: Tensor, kept: Tensor | None = None) -> None:
        """Change a mask; positions that are active in ``kept`` (None: in the mask before) keep their values."""
        mask = self._program.mask(name)
        grown = new & ~(mask if kept is None else kept)
        mask.copy_(new)
        count = ones(grown)
        if count:
            self.grown[name] += count
            self.visited[name] = coverage.visit(self.visited[name], new)
        self._stored.follow(name, grown)

    def readings(self) -> dict[str, float]:
        """Return the figures of scores that have some, summed over weights and moves."""
        found = dict[str, float]()
        for index, move in enumerate(self._moves):
            for slot, score in _scores(move).items():
                if (readings := score.readings) is not None:
                    for key, value in (
                        x for state in self._states[f"{index}.{slot}"].values() for x in readings(state).items()
                    ):
                        found[key] = found.get(key, 0.0) + value
        return found

    def coverage(self) -> dict[str, float]:
        """Return, by weight, the share of its positions that have ever been active, in [0, 1]."""
        return {name: coverage.count(seen) / self._program.mask(name).numel() for name, seen in self.visited.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state; it loads with ``weights_only=True``."""
        return {
            "scores": self._states,
            "visited": dict(self.visited),
            "grown": dict(self.grown),
            "computed": dict(self.computed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self._states = state["scores"]
        self.visited = {name: seen.cpu() for name, seen in state["visited"].items()}
        self.grown, self.computed = dict(state["grown"]), {**self.computed, **state.get("computed", {})}


def _scores(move: Move) -> dict[str, Score]:
    match move:
        case DropAndGrow(drop_by=drop_by, grow_by=grow_by):
            return {"drop": drop_by, "grow": grow_by}
        case Prune(by=by):
            return {"prune": by}


def _reads_gradient(move: Move) -> bool:
    """Return whether a move ranks by the dense gradient, or splits its density by it."""
    return any(score.needs_gradient for score in _scores(move).values()) or (
        isinstance(move, Prune) and needs_gradient(move.allocation)
    )


def _density(move: Move) -> Schedule | None:
    """Return the density that a move leads to, by step; None if it keeps the density."""
    match move:
        case DropAndGrow(budgets=budgets):
            return None if budgets is None else budgets.density_at
        case Prune(density=density):
            return density
