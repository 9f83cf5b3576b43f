"""`attach` a method to a program and an optimizer; `SparseTrainer.step` is then the one call of the loop.

Weights are exactly 0 where inactive after every step. The lowered masks give such weights no gradient, so an optimizer that
adds nothing of its own leaves them at 0; one that does is found on its first step and masked after each.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.ir.channels import written_together
from sparsify.ir.verifier import count_stray
from sparsify.methods import Correction, Method
from sparsify.parts.allocation import Layer
from sparsify.parts.averaging import running_mean
from sparsify.parts.grouped import bound_together, select_together
from sparsify.parts.patterns import Pattern, parse_pattern
from sparsify.parts.scores import Score, View
from sparsify.parts.topology import DropAndGrow, Prune, update
from sparsify.passes import InsertGradientTaps, InsertMasks, LowerMasks, Pass, Pipeline
from sparsify.training.probe import Closure, probe

SALT = 0x9E3779B97F4A7C15
"""Added to the seed of masks: weights initialised with the same seed come from the same stream, and masks drawn from it again would
keep the weights with the highest values, all of one sign."""


def attach(
    method: Method, program: Program, optimizer: torch.optim.Optimizer, *, total_steps: int, seed: int = 0
) -> SparseTrainer:
    """Make ``program`` sparse in place and return the trainer whose ``step()`` replaces ``optimizer.step()``.

    Args:
        method: from `sparsify.methods`.
        program: of stage TRACED; its parameters are those the optimizer holds.
        optimizer: over ``program.parameters()`` or the traced model's, which are the same objects.
        total_steps: optimizer steps of the whole run; schedules given as fractions are of this.
        seed: of random masks and random growth.

    Raises:
        TrainingError: If the optimizer does not hold the weights, or ``total_steps`` is not positive.
        PatternError: If the pattern does not fit a weight.
        AllocationError: If the density cannot be met.
    """
    if total_steps < 1:
        raise TrainingError(f"total_steps should be at least 1, found {total_steps}. Use len(loader) * epochs.")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lost = [name for name, p in program.named_parameters() if p.requires_grad and id(p) not in held]
    if lost:
        raise TrainingError(
            f"the optimizer does not hold {len(lost)} parameters of {program.name!r} ({', '.join(lost[:4])}); they would "
            f"never change. Build it over program.parameters() after tracing, and move the program first."
        )
    return SparseTrainer(method, program, optimizer, total_steps=total_steps, seed=seed)


class SparseTrainer:
    """A method at work on a program. Made by `attach`.

    Attributes:
        steps: optimizer steps taken, rounds that replaced one included.
        counts: ``{"rounds", "skipped_rounds", "probes"}``.
    """

    def __init__(
        self, method: Method, program: Program, optimizer: torch.optim.Optimizer, *, total_steps: int, seed: int
    ) -> None:
        self.method, self.program, self.optimizer = method, program, optimizer
        self.total_steps, self.steps = total_steps, 0
        self.counts = {"rounds": 0, "skipped_rounds": 0, "probes": 0}
        self._generator = torch.Generator().manual_seed((seed + SALT) % 2**63)
        self._topology = method.topology(total_steps) if method.topology else None
        self._patterns: dict[str, Pattern] = {}
        self._together: list[tuple[str, ...]] = []
        self._remask = False
        self._score_states: dict[str, dict[str, Any]] = {}
        self._averaging = method.averaging(total_steps) if method.averaging else None
        self._averages: dict[str, Tensor] = {}
        self._check_averaging()
        if method.initial != "dense" or self._topology is not None:
            self._insert()
        self._correction_state: Any = method.correction.init(self._parameters()) if method.correction else None
        self._arm()

    # --- set-up

    def _check_averaging(self) -> None:
        if self._averaging is None or self._topology is None:
            return
        late = [step for step in range(self._averaging.start_at, self.total_steps + 1) if self._topology.when(step)]
        if late:
            raise TrainingError(
                f"method {self.method.name!r} averages weights from step {self._averaging.start_at}, but the topology still changes on "
                f"step {late[-1]}; an average over different masks is not sparse. Start averaging later, or lower stop_at."
            )

    def _parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.program.named_parameters() if p.requires_grad}

    def _insert(self) -> None:
        steps: list[Pass] = [InsertMasks(pattern=self.method.pattern, keep_dense=self.method.keep_dense)]
        Pipeline(tuple(steps)).apply(self.program)
        self._patterns = {site.weight: parse_pattern(site.pattern) for site in self.program.mask_sites()}
        learned = [name for name, pattern in self._patterns.items() if pattern.is_learned]
        sets = {name: names for names in written_together(self.program, learned) for name in names}
        self._together = list(dict.fromkeys(sets.get(name, (name,)) for name in self._patterns))
        planned = self._topology.allocation if isinstance(self._topology, Prune) else self.method.allocation
        budgets = planned(self._layers(), self.method.density)  # raises now, not in a round, where it cannot be met
        if self.method.initial != "dense" and not self._dense_until():
            self._choose(budgets, by_magnitude=self.method.initial == "magnitude")
        for name in self.program.masks():
            self._clear_inactive(name)
            if self.method.initial_scale == "fan-in" and not self._dense_until():
                self._scale_to_fan_in(name)
        taps: tuple[Pass, ...] = (InsertGradientTaps(),) if self._needs_gradient() else ()
        Pipeline((*taps, LowerMasks(), *self.method.passes)).apply(self.program)
        for slot, score in self._scores().items():
            self._score_states[slot] = {
                name: score.init(self.program.weight(name).detach()) for name in self.program.masks()
            }

    def _choose(self, budgets: Mapping[str, int], *, by_magnitude: bool) -> None:
        """Masks of the whole budgets, by magnitude or at random."""

        def scores(name: str) -> Tensor:
            weight = self.program.weight(name).detach()
            noise = torch.rand(weight.shape, generator=self._generator)
            return weight.abs() if by_magnitude else noise.to(weight.device)

        self._select(scores, budgets)

    def _select(self, scores: Callable[[str], Tensor], budgets: Mapping[str, int]) -> None:
        """Set the masks of highest score; those of weights whose outputs have one order together."""
        for names in self._together:
            patterns = {name: self._patterns[name] for name in names}
            for name, mask in select_together(patterns, {name: scores(name) for name in names}, budgets).items():
                self._set_mask(name, mask)

    def _dense_until(self) -> int:
        return self._topology.dense_until if isinstance(self._topology, DropAndGrow) else 0

    def _scale_to_fan_in(self, name: str) -> None:
        """Give each output [I, *K] of a weight [O, I, *K] the sum of squares it would have if all its inputs were active."""
        mask = self.program.mask(name).flatten(1)
        factor = (mask.shape[1] / mask.sum(dim=1).clamp_min(1)).sqrt()
        with torch.no_grad():
            weight = self.program.weight(name)
            weight.mul_(factor.to(weight.dtype).view(-1, *(1,) * (weight.ndim - 1)))

    def _layers(self) -> dict[str, Layer]:
        layers: dict[str, Layer] = {}
        for name in self.program.masks():
            weight = self.program.weight(name).detach()
            shape, pattern = tuple(weight.shape), self._patterns[name]
            layers[name] = Layer(shape, pattern.unit_size(shape), pattern.fixed_density(shape), weight)
        return layers

    def _scores(self) -> dict[str, Score]:
        match self._topology:
            case DropAndGrow(drop_by=drop_by, grow_by=grow_by):
                return {"drop": drop_by, "grow": grow_by}
            case Prune(by=by):
                return {"prune": by}
            case _:
                return {}

    def _needs_gradient(self) -> bool:
        return any(score.needs_gradient for score in self._scores().values())

    def _replaces_step(self) -> bool:
        return isinstance(self._topology, DropAndGrow) and self._topology.replaces_step

    # --- the loop

    @property
    def density(self) -> float:
        """Active / maskable weights now."""
        return self.program.costs().density

    def step(self, closure: Closure | None = None) -> None:
        """Optimizer step, then a topology update when one is due. Call it after ``loss.backward()``.

        Args:
            closure: the loss of the current batch by another forward pass, without backward; methods with a correction need it.

        Raises:
            TrainingError: If the method needs a closure, or the dense gradient of a due round did not arrive.
        """
        self.steps += 1
        due = self._topology is not None and self._topology.when(self.steps)
        if not (due and self._replaces_step()):
            if self.method.correction is not None:
                self._correct(self.method.correction, closure)
            self.optimizer.step()
            self._keep_zeros()
        if due:
            self._round()
        elif self.steps == self._dense_until():
            self._choose(self.method.allocation(self._layers(), self.method.density), by_magnitude=True)
            self.counts["rounds"] += 1
            self.program.verify()
        self._average()
        self._arm()

    def finish(self, batches: Iterable[Tensor] = ()) -> None:
        """End the run: with averaging, load the averaged weights and re-estimate batch-norm statistics.

        Args:
            batches: training inputs [N, ...]; one forward pass in train mode each.
        """
        if not self._averages:
            return
        with torch.no_grad():
            for name, parameter in self.program.named_parameters():
                if name in self._averages:
                    parameter.copy_(self._averages[name])
            mode = self.program.training
            self.program.train()
            for batch in batches:
                self.program(batch)
            self.program.train(mode)
        self.program.verify()

    def _correct(self, correction: Correction, closure: Closure | None) -> None:
        if closure is None:
            raise TrainingError(
                f"method {self.method.name!r} corrects gradients and needs the loss of the batch again: call "
                f"trainer.step(lambda: criterion(program(x), y))."
            )

        def counted(at: Mapping[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
            self.counts["probes"] += 1
            return probe(self.program, closure, at)

        parameters, masks = dict(self.program.named_parameters()), self.program.masks()
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        corrected, self._correction_state = correction.correct(gradients, self._correction_state, counted, self.steps)
        for name, value in corrected.items():
            parameters[name].grad = value * masks[name] if name in masks else value

    def _average(self) -> None:
        plan = self._averaging
        if plan is None or self.steps < plan.start_at or (self.steps - plan.start_at) % plan.every:
            return
        count = (self.steps - plan.start_at) // plan.every + 1
        for name, value in self._parameters().items():
            self._averages[name] = running_mean(self._averages.get(name), value, count)

    def _keep_zeros(self) -> None:
        masks = self.program.masks() if self._remask or self.steps == 1 else {}
        if self.steps == 1:
            self._remask = any(count_stray(self.program.weight(n), m) for n, m in masks.items())
        if self._remask:
            with torch.no_grad():
                for name, mask in masks.items():
                    self.program.weight(name).masked_fill_(~mask, 0.0)

    def _arm(self) -> None:
        due = self._topology is not None and self._topology.when(self.steps + 1) and self._needs_gradient()
        for tap in self.program.taps().values():
            tap.clear()
            tap.armed, tap.in_grad = due, self._replaces_step()

    # --- topology

    def _round(self) -> None:
        gradients = {
            name: self.program.weight(name).grad if tap.in_grad else tap.gradient
            for name, tap in self.program.taps().items()
        }
        if self._needs_gradient():
            absent = [name for name, gradient in gradients.items() if gradient is None]
            if absent:
                raise TrainingError(
                    f"no dense gradient reached {', '.join(absent[:4])} on step {self.steps}. Call trainer.step() after "
                    f"loss.backward(), with the program in train mode."
                )
            if not all(_is_finite(g) for g in gradients.values() if g is not None):
                self.counts["skipped_rounds"] += 1
                for name in gradients:
                    self._clear_inactive(name)
                return
        match self._topology:
            case DropAndGrow() as topology:
                self._drop_and_grow(topology, gradients)
            case Prune() as topology:
                self._prune(topology, gradients)
        self.counts["rounds"] += 1
        self.program.verify()

    def _rate(self, slot: str, score: Score, name: str, gradients: dict[str, Tensor | None]) -> Tensor:
        view = View(
            weight=self.program.weight(name).detach(),
            mask=self.program.mask(name),
            gradient=gradients.get(name),
            step=self.steps,
            generator=self._generator,
        )
        scores, self._score_states[slot][name] = score.rate(view, self._score_states[slot][name])
        return scores

    def _drop_and_grow(self, topology: DropAndGrow, gradients: dict[str, Tensor | None]) -> None:
        fraction = topology.fraction(self.steps)
        masks, patterns = self.program.masks(), dict[str, Pattern]()
        for names in self._together:
            patterns |= bound_together({name: self._patterns[name] for name in names}, masks)
        for name in sorted(masks, key=lambda name: masks[name].numel()):
            new = update(
                masks[name],
                functools.partial(self._rate, "drop", topology.drop_by, name, gradients),
                functools.partial(self._rate, "grow", topology.grow_by, name, gradients),
                fraction,
                pattern=patterns[name],
                regrow_dropped=topology.regrow_dropped,
            )
            gradients.pop(name, None)
            if topology.replaces_step:
                # No optimizer will see this gradient; the largest weight is treated when the others' are freed.
                self.program.weight(name).grad = None
            self._set_mask(name, new)

    def _prune(self, topology: Prune, gradients: dict[str, Tensor | None]) -> None:
        density = topology.density(self.steps)
        layers = self._layers()
        fixed = next(iter(layers.values())).fixed_density
        if fixed is not None and density > fixed:
            return
        budgets = topology.allocation(layers, density)
        masks = self.program.masks()
        self._select(
            lambda name: self._rate("prune", topology.by, name, gradients).masked_fill(~masks[name], -1.0),
            {name: min(budgets[name], int(mask.count_nonzero())) for name, mask in masks.items()},
        )

    def _set_mask(self, name: str, new: Tensor) -> None:
        mask = self.program.mask(name)
        grown = new & ~mask
        mask.copy_(new)
        self._clear_inactive(name, grown=grown)

    def _clear_inactive(self, name: str, *, grown: Tensor | None = None) -> None:
        """Zero inactive weights and their gradients, and optimizer state where inactive or grown; the only place that does."""
        weight, inactive = self.program.weight(name), ~self.program.mask(name)
        with torch.no_grad():
            weight.masked_fill_(inactive, 0.0)
            if weight.grad is not None:
                weight.grad.masked_fill_(inactive, 0.0)
            if grown is not None:
                inactive |= grown
            for value in self.optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.masked_fill_(inactive, 0.0)

    # --- state

    def state_dict(self) -> dict[str, Any]:
        """All that is not in the program's and the optimizer's own state dicts; loads with ``weights_only=True``."""
        return {
            "method": self.method.name,
            "total_steps": self.total_steps,
            "steps": self.steps,
            "counts": dict(self.counts),
            "remask": self._remask,
            "generator": self._generator.get_state(),
            "scores": self._score_states,
            "correction": self._correction_state,
            "averages": self._averages,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; load the program's and the optimizer's state dicts as well.

        Raises:
            TrainingError: If the state is of another method or run length.
        """
        for key, have in (("method", self.method.name), ("total_steps", self.total_steps)):
            if state[key] != have:
                raise TrainingError(
                    f"the saved state has {key} {state[key]!r}, this trainer {have!r}. Attach what was saved."
                )
        self.steps, self._remask = int(state["steps"]), bool(state["remask"])
        self.counts = dict(state["counts"])
        self._generator.set_state(state["generator"])
        self._score_states = state["scores"]
        self._correction_state, self._averages = state["correction"], state["averages"]
        self._arm()


def _is_finite(values: Tensor) -> bool:
    """Whether no entry is NaN or infinite, without a copy."""
    return all(math.isfinite(float(end)) for end in torch.aminmax(values.detach()))
