"""`attach` a method to a program and an optimizer; `SparseTrainer.step` is then the one call of the loop.

Weights are exactly 0 where inactive after every step. The lowered masks give such weights no gradient, so an optimizer that
adds nothing of its own leaves them at 0; one that does is found on its first step and masked after each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.ir.verifier import count_stray
from sparsify.methods import Correction, Method
from sparsify.parts.averaging import running_mean
from sparsify.parts.patterns import Pattern, parse_pattern
from sparsify.passes import InsertGradientTaps, InsertMasks, LowerMasks, Pass, Pipeline
from sparsify.training.groups import adopt
from sparsify.training.loss import RunningLoss
from sparsify.training.probe import Closure, probe
from sparsify.training.rounds import Rounds, clear_inactive, layers, select_masks

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
        self._rounds = Rounds(self._topology, program, optimizer, self._patterns, self._generator)
        self._remask = False
        self._rewinding = method.rewinding(total_steps) if method.rewinding else None
        self._early: dict[str, Tensor] = {}
        self._averaging = method.averaging(total_steps) if method.averaging else None
        self._averages: dict[str, Tensor] = {}
        self._check_averaging()
        self._loss = RunningLoss(method, total_steps)
        if method.initial != "dense" or self._topology is not None:
            self._insert()
        Pipeline(method.passes).apply(program)
        adopt(program, optimizer)
        self._correction_state: Any = method.correction.init(self._parameters()) if method.correction else None
        self._keep_early()
        self._rounds.arm(1)

    # --- set-up

    def _check_averaging(self) -> None:
        if self._averaging is None:
            return
        again = self._rewinding.at if self._rewinding else ()
        late = [s for s in range(self._averaging.start_at, self.total_steps + 1) if self._rounds.due(s) or s in again]
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
        self._patterns.update({site.weight: parse_pattern(site.pattern) for site in self.program.mask_sites()})
        self._rounds.check(self.method.density)
        if self.method.initial != "dense":
            density = self.method.density if self.method.initial_density is None else self.method.initial_density
            budgets = self.method.allocation(layers(self.program, self._patterns), density)
            for name, mask in select_masks(self.program, self._patterns, self._first_scores, budgets):
                self.program.mask(name).copy_(mask)
        for name in self.program.masks():
            clear_inactive(self.program, self.optimizer, name)
            if self.method.initial_scale == "fan-in":
                self._scale_to_fan_in(name)
        taps: tuple[Pass, ...] = (InsertGradientTaps(),) if self._rounds.needs_gradient else ()
        Pipeline((*taps, LowerMasks())).apply(self.program)
        self._rounds.start()

    def _first_scores(self, name: str) -> Tensor:
        weight = self.program.weight(name).detach()
        noise = torch.rand(weight.shape, generator=self._generator)
        return weight.abs() if self.method.initial == "magnitude" else noise.to(weight.device)

    def _scale_to_fan_in(self, name: str) -> None:
        """Give each output [I, *K] of a weight [O, I, *K] the sum of squares it would have if all its inputs were active."""
        mask = self.program.mask(name).flatten(1)
        factor = (mask.shape[1] / mask.sum(dim=1).clamp_min(1)).sqrt()
        with torch.no_grad():
            weight = self.program.weight(name)
            weight.mul_(factor.to(weight.dtype).view(-1, *(1,) * (weight.ndim - 1)))

    # --- the loop

    @property
    def density(self) -> float:
        """Active / maskable weights now."""
        return self.program.costs().density

    @property
    def coverage(self) -> dict[str, float]:
        """By masked weight, the share of its positions that have been active so far."""
        return self._rounds.coverage()

    @property
    def grown(self) -> dict[str, int]:
        """By masked weight, how many positions rounds have activated so far."""
        return dict(self._rounds.grown)

    def position(self, step: int) -> tuple[int, int]:
        """Where the learning rate's schedule stands after ``step`` steps, and its length: they differ from ``step`` and
        ``total_steps`` where the method rewinds."""
        return self._rewinding.position(step, self.total_steps) if self._rewinding else (step, self.total_steps)

    def loss(self, output: Any, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The method's loss of a batch: cross-entropy, unless the method has its own. Needed for those that do, and good for all.

        Args:
            output: what calling the program in train mode returned.
            labels: int64 [N].
            label_smoothing: of cross-entropy, in [0, 1).

        Raises:
            TrainingError: If the program is in eval mode, or labels should be smoothed where the method has a loss of its own.
        """
        if not self.program.training:
            raise TrainingError(
                "trainer.loss is for training steps. Call program.train() first, or measure with a criterion of your own."
            )
        return self._loss(self.program.logits(output).float(), labels, self.steps + 1, label_smoothing=label_smoothing)

    def measures(self) -> dict[str, float]:
        """What the method has to say of itself now, by name; a row of ``history.jsonl`` holds it."""
        return dict(self._loss.measures())

    def step(self, closure: Closure | None = None) -> None:
        """Optimizer step, then a topology update when one is due. Call it after ``loss.backward()``.

        Args:
            closure: the loss of the current batch by another forward pass, without backward; methods with a correction need it.

        Raises:
            TrainingError: If the method needs a closure or its own loss, or the dense gradient of a due round did not arrive.
        """
        self._loss.check_used()
        self.steps += 1
        if not self._rounds.replaces(self.steps):
            if self.method.correction is not None:
                self._correct(self.method.correction, closure)
            self.optimizer.step()
            self._keep_zeros()
        if self._rounds.due(self.steps):
            self.counts["rounds" if self._rounds.update(self.steps) else "skipped_rounds"] += 1
        self._keep_early()
        self._rewind()
        self._average()
        self._rounds.arm(self.steps + 1)
        self._loss.end_step()

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

    # --- rewinding

    def _state_of_model(self) -> dict[str, Tensor]:
        masks = {f"{name}_mask" for name in self.program.masks()}
        tensors = {**dict(self.program.named_parameters()), **dict(self.program.named_buffers())}
        return {name: value.detach() for name, value in tensors.items() if name not in masks}

    def _keep_early(self) -> None:
        plan = self._rewinding
        if plan is not None and plan.weights and self.steps == plan.save_at:
            self._early = {name: value.clone() for name, value in self._state_of_model().items()}

    def _rewind(self) -> None:
        plan = self._rewinding
        if plan is None or self.steps not in plan.at:
            return
        with torch.no_grad():
            for name, value in self._state_of_model().items():
                if name in self._early:
                    value.copy_(self._early[name])
        self.optimizer.state.clear()
        for name in self.program.masks():
            clear_inactive(self.program, self.optimizer, name)
        if self.steps == plan.at[-1]:
            self._early = {}
        self.program.verify()

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
            "rounds": self._rounds.state_dict(),
            "early": self._early,
            "correction": self._correction_state,
            "loss": self._loss.state_dict(),
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
        device = next(self.program.parameters()).device
        self.steps, self._remask = int(state["steps"]), bool(state["remask"])
        self.counts = dict(state["counts"])
        self._generator.set_state(state["generator"])
        self._rounds.load_state_dict(state["rounds"])
        self._early = {name: value.to(device) for name, value in state["early"].items()}
        self._loss.load_state_dict(state["loss"])
        self._correction_state, self._averages = state["correction"], state["averages"]
        self._rounds.arm(self.steps + 1)
