"""`attach` a method to a program and an optimizer; `SparseTrainer.step` is then the one call of the loop.

Weights are exactly 0 where inactive after every step. The lowered masks give such weights no gradient, so an optimizer that
adds nothing of its own leaves them at 0; one that does is found on its first step and masked after each.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.ir.verifier import count_stray
from sparsify.methods import Correction, Method
from sparsify.parts.allocation import Layer
from sparsify.parts.patterns import Pattern, parse_pattern
from sparsify.parts.scores import Score, View
from sparsify.parts.topology import DropAndGrow, Prune, update
from sparsify.passes import InsertGradientTaps, InsertMasks, LowerMasks, Pass, Pipeline, RemoveRandomMasks
from sparsify.training.averaging import WeightAverage, check_averaging, reestimate_batch_norm
from sparsify.training.correction import Corrector
from sparsify.training.probe import Closure, Sweep
from sparsify.training.random_masks import RandomMasks

SALT = 0x9E3779B97F4A7C15
"""Added to the seed of masks: weights initialised with the same seed come from the same stream, and masks drawn from it again would
keep the weights with the highest values, all of one sign."""


def attach(
    method: Method,
    program: Program,
    optimizer: torch.optim.Optimizer,
    *,
    total_steps: int,
    seed: int = 0,
    epoch_steps: int | None = None,
    sweep: Sweep | None = None,
) -> SparseTrainer:
    """Make ``program`` sparse in place and return the trainer whose ``step()`` replaces ``optimizer.step()``.

    Args:
        method: from `sparsify.methods`.
        program: of stage TRACED; its parameters are those the optimizer holds.
        optimizer: over ``program.parameters()`` or the traced model's, which are the same objects.
        total_steps: optimizer steps of the whole run; schedules given as fractions are of this.
        seed: of random masks and random growth.
        epoch_steps: optimizer steps of an epoch, for methods that do something once an epoch.
        sweep: for methods that look at more of the training data than the batch of a step: a function that returns the losses of
            the training batches, in an order drawn anew, each as a function without arguments.

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
    return SparseTrainer(
        method, program, optimizer, total_steps=total_steps, seed=seed, epoch_steps=epoch_steps, sweep=sweep
    )


class SparseTrainer:
    """A method at work on a program. Made by `attach`.

    Attributes:
        steps: optimizer steps taken, rounds that replaced one included.
        counts: rounds, skipped rounds, probes (evaluations of a batch beside the step's own), and forward and backward passes,
            each of one batch, those of the steps included.
    """

    def __init__(
        self,
        method: Method,
        program: Program,
        optimizer: torch.optim.Optimizer,
        *,
        total_steps: int,
        seed: int,
        epoch_steps: int | None = None,
        sweep: Sweep | None = None,
    ) -> None:
        self.method, self.program, self.optimizer = method, program, optimizer
        self.total_steps, self.steps = total_steps, 0
        self.counts: dict[str, int] = dict.fromkeys(("rounds", "skipped_rounds", "probes", "forwards", "backwards"), 0)
        self._generator = torch.Generator().manual_seed((seed + SALT) % 2**63)
        self._topology = method.topology(total_steps) if method.topology else None
        self._patterns: dict[str, Pattern] = {}
        self._remask = False
        self._score_states: dict[str, dict[str, Any]] = {}
        self._average = WeightAverage(method.averaging(total_steps)) if method.averaging else None
        if self._average:
            check_averaging(method, self._average.plan, self._topology, total_steps)
        correction: Correction | None = method.correction(total_steps) if method.correction else None
        self._insert(tapped=self._needs_gradient() or (correction is not None and correction.dense))
        self._random = RandomMasks(program, seed=(seed + 2 * SALT) % 2**63)
        self._corrected, self._corrector = False, None
        if correction is not None:
            self._corrector = Corrector(
                correction, method.name, program, self._random, self.counts, epoch_steps=epoch_steps, sweep=sweep
            )
        self._random.draw()
        self._arm()

    # --- set-up

    def _insert(self, *, tapped: bool) -> None:
        if self.method.initial == "dense" and self._topology is None:
            Pipeline(self.method.passes).apply(self.program)
            return
        Pipeline((InsertMasks(pattern=self.method.pattern, keep_dense=self.method.keep_dense),)).apply(self.program)
        self._patterns = {site.weight: parse_pattern(site.pattern) for site in self.program.mask_sites()}
        if self.method.initial != "dense":
            budgets = self.method.allocation(self._layers(), self.method.density)
            for name, mask in self.program.masks().items():
                weight = self.program.weight(name).detach()
                noise = torch.rand(weight.shape, generator=self._generator)
                scores = weight.abs() if self.method.initial == "magnitude" else noise.to(weight.device)
                mask.copy_(self._patterns[name].select(scores, budgets[name]))
        for name in self.program.masks():
            self._clear_inactive(name)
            if self.method.initial_scale == "fan-in":
                self._scale_to_fan_in(name)
        taps: tuple[Pass, ...] = (InsertGradientTaps(),) if tapped else ()
        Pipeline((*taps, LowerMasks(), *self.method.passes)).apply(self.program)
        for slot, score in self._scores().items():
            self._score_states[slot] = {
                name: score.init(self.program.weight(name).detach()) for name in self.program.masks()
            }

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
            closure: the loss of the current batch by another forward pass, without backward; for corrections that evaluate it again.

        Raises:
            TrainingError: If the method needs a closure or a sweep, or the dense gradient of a due round did not arrive.
        """
        self.correct(closure)
        self.steps, self._corrected = self.steps + 1, False
        for key in ("forwards", "backwards"):
            self.counts[key] += 1
        due = self._topology is not None and self._topology.when(self.steps)
        if not (due and self._replaces_step()):
            with self._random.hidden_still() if self.method.holds_hidden else contextlib.nullcontext():
                self.optimizer.step()
            self._keep_zeros()
        if due:
            self._round()
        if self._average:
            self._average.take(self.program, self.steps)
        self._random.draw()
        self._arm()

    def correct(self, closure: Closure | None = None) -> None:
        """Correct the gradients of the coming step now, for loops that clip gradients between; `step` does it otherwise.

        Args:
            closure: as for `step`.

        Raises:
            TrainingError: If the method needs a closure or a sweep.
        """
        step = self.steps + 1
        replaced = self._replaces_step() and self._topology is not None and self._topology.when(step)
        if self._corrector and not self._corrected and not replaced:
            self._corrector.apply(step, closure)
            self._corrected = True

    def readings(self) -> dict[str, float]:
        """Figures of the method's own at this step, by name, for the history of a run."""
        return self._corrector.readings() if self._corrector else {}

    def finish(self, batches: Iterable[Any] = ()) -> None:
        """End the run: remove random masks, load averaged weights, and take batch-norm statistics for what is left.

        Args:
            batches: training inputs [N, ...], tuples where the program has several; one forward pass in train mode each. Needed
                where the program has batch norms and the method averages weights or has random masks.

        Raises:
            TrainingError: If batches are needed and there are none.
        """
        averaged = self._average is not None and bool(self._average.means)
        if not averaged and not self._random.sites:
            return
        if self._random.sites:
            Pipeline((RemoveRandomMasks(),)).apply(self.program)
            self._random.sites = ()
        if self._average:
            self._average.load(self.program)
        self.counts["forwards"] += reestimate_batch_norm(self.program, batches)
        self.program.verify()

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
        for name, tap in self.program.taps().items():
            tap.clear()
            # Behind a random mask, .grad is not dense.
            tap.armed, tap.in_grad = due, self._replaces_step() and name not in self._random

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
        masks = self.program.masks()
        for name in sorted(masks, key=lambda name: masks[name].numel()):
            new = update(
                masks[name],
                functools.partial(self._rate, "drop", topology.drop_by, name, gradients),
                functools.partial(self._rate, "grow", topology.grow_by, name, gradients),
                fraction,
                pattern=self._patterns[name],
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
        for name, mask in self.program.masks().items():
            scores = self._rate("prune", topology.by, name, gradients).masked_fill(~mask, -1.0)
            self._set_mask(name, self._patterns[name].select(scores, min(budgets[name], int(mask.count_nonzero()))))

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
            "correction": self._corrector.state if self._corrector else None,
            "averages": self._average.means if self._average else {},
            "draws": self._random.generator.get_state(),
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
        self.counts.update(state["counts"])
        self._generator.set_state(state["generator"])
        self._random.generator.set_state(state["draws"])
        device = next(self.program.parameters()).device

        def here(content: Any) -> Any:
            """A checkpoint is read to the CPU."""
            return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, content)

        self._score_states = here(state["scores"])
        if self._corrector:
            self._corrector.state = here(state["correction"])
        if self._average:
            self._average.means = here(state["averages"])
        self._arm()


def _is_finite(values: Tensor) -> bool:
    """Whether no entry is NaN or infinite, without a copy."""
    return all(math.isfinite(float(end)) for end in torch.aminmax(values.detach()))
