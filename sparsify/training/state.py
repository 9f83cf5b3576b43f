"""`attach` a method to a program and an optimizer; `SparseTrainer.step` is then the one call of the loop.

Weights are exactly 0 where inactive after every step. The lowered masks give such weights no gradient, so an optimizer that
adds nothing of its own leaves them at 0; one that does is found on its first step and masked after each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.ir.verifier import count_stray
from sparsify.methods import Method
from sparsify.passes import Pipeline, RemoveRandomMasks
from sparsify.training.averaging import WeightAverage, check_averaging, reestimate_batch_norm
from sparsify.training.checkpoint import placed
from sparsify.training.correction import Corrector
from sparsify.training.groups import adopt
from sparsify.training.initial_masks import insert_masks
from sparsify.training.loss import RunningLoss
from sparsify.training.probe import Closure, Sweep
from sparsify.training.random_masks import RandomMasks
from sparsify.training.rewinding import Rewinder
from sparsify.training.rounds import Rounds
from sparsify.training.teaching import Teacher, Teaching

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
    teacher: Teacher | None = None,
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
        teacher: for methods that learn from one: a function from the inputs of a batch to logits [N, K],
            such as a trained module in eval mode, on the device of the inputs.

    Raises:
        TrainingError: If the optimizer does not hold the weights, ``total_steps`` is not positive, or the method needs a teacher.
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
        method,
        program,
        optimizer,
        total_steps=total_steps,
        seed=seed,
        epoch_steps=epoch_steps,
        sweep=sweep,
        teacher=teacher,
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
        teacher: Teacher | None = None,
    ) -> None:
        self.method, self.program, self.optimizer = method, program, optimizer
        self.total_steps, self.steps = total_steps, 0
        self.counts: dict[str, int] = dict.fromkeys(("rounds", "skipped_rounds", "probes", "forwards", "backwards"), 0)
        self._remask, self._corrected = False, False
        self._generator = torch.Generator().manual_seed((seed + SALT) % 2**63)
        topology = method.topology(total_steps) if method.topology else None
        self._rounds = Rounds(topology, program, optimizer, self._generator)
        self._rewinder = Rewinder(method.rewinding(total_steps), program, optimizer) if method.rewinding else None
        self._average = WeightAverage(method.averaging(total_steps)) if method.averaging else None
        if self._average:
            check_averaging(method, self._average.plan, self._masks_change, total_steps)
        self._loss = RunningLoss(method, total_steps)
        self._teaching = Teaching(method, teacher, program, self.counts)
        correction = method.correction(total_steps) if method.correction else None
        if method.initial != "dense" or topology is not None:
            tapped = self._rounds.needs_gradient or (correction is not None and correction.dense)
            insert_masks(method, program, optimizer, self._generator, tapped=tapped)
            self._rounds.check(method.density)
        Pipeline(method.passes).apply(program)
        adopt(program, optimizer)
        self._random = RandomMasks(program, seed=(seed + 2 * SALT) % 2**63)
        self._corrector = None
        if correction is not None:
            self._corrector = Corrector(
                correction, method.name, program, self._random, self.counts, epoch_steps=epoch_steps, sweep=sweep
            )
        self._rounds.start()
        if self._rewinder:
            self._rewinder.keep(0)
        self._random.draw()
        self._rounds.arm(1)

    def _masks_change(self, step: int) -> bool:
        return self._rounds.due(step) or (self._rewinder is not None and step in self._rewinder.plan.at)

    # --- what it tells

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
        return self._rewinder.plan.position(step, self.total_steps) if self._rewinder else (step, self.total_steps)

    def readings(self) -> dict[str, float]:
        """Figures of the method's own at this step, by name, for the history of a run."""
        return {**(self._corrector.readings() if self._corrector else {}), **self._loss.readings()}

    # --- the loop

    def loss(self, output: Any, labels: Tensor, *, inputs: Any = None, label_smoothing: float = 0.0) -> Tensor:
        """The method's loss of a batch: cross-entropy, unless the method has its own or a teacher. Needed for those, and good for all.

        Args:
            output: what calling the program in train mode returned.
            labels: int64 [N].
            inputs: what the program was called with, for a method that has a teacher.
            label_smoothing: of cross-entropy, in [0, 1).

        Raises:
            TrainingError: If the program is in eval mode, labels should be smoothed where the method has a loss of its own, or the
                teacher cannot be asked.
        """
        if not self.program.training:
            raise TrainingError(
                "trainer.loss is for training steps. Call program.train() first, or measure with a criterion of your own."
            )
        logits = self.program.logits(output).float()
        loss = self._loss(logits, labels, self.steps + 1, label_smoothing=label_smoothing)
        return self._teaching.joined(loss, logits, inputs)

    def correct(self, closure: Closure | None = None) -> None:
        """Correct the gradients of the coming step now, for loops that clip gradients between; `step` does it otherwise.

        Args:
            closure: as for `step`.

        Raises:
            TrainingError: If the method needs a closure, a sweep or its own loss.
        """
        self._loss.check_used()
        step = self.steps + 1
        if self._corrector and not self._corrected and not self._rounds.replaces(step):
            self._corrector.apply(step, closure)
            self._corrected = True

    def step(self, closure: Closure | None = None) -> None:
        """Optimizer step, then a topology update when one is due. Call it after ``loss.backward()``.

        Args:
            closure: the loss of the current batch by another forward pass, without backward; for corrections that evaluate it again.

        Raises:
            TrainingError: If the method needs a closure, a sweep or its own loss, or the dense gradient of a due round did not arrive.
        """
        self.correct(closure)
        self.steps, self._corrected = self.steps + 1, False
        for key in ("forwards", "backwards"):
            self.counts[key] += 1
        if not self._rounds.replaces(self.steps):
            with self._random.hidden_still() if self.method.holds_hidden else contextlib.nullcontext():
                self.optimizer.step()
            self._keep_zeros()
        if self._rounds.due(self.steps):
            self.counts["rounds" if self._rounds.update(self.steps) else "skipped_rounds"] += 1
        self._rewind()
        if self._average:
            self._average.take(self.program, self.steps)
        self._loss.end_step()
        self._random.draw()
        self._rounds.arm(self.steps + 1)

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

    def _rewind(self) -> None:
        if self._rewinder is None:
            return
        self._rewinder.keep(self.steps)
        if self._rewinder.rewind(self.steps) and self._corrector:
            self._corrector.start()  # what it remembers is of the training that ended, as the optimizer's state is

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
            "draws": self._random.generator.get_state(),
            "rounds": self._rounds.state_dict(),
            "early": self._rewinder.early if self._rewinder else {},
            "correction": self._corrector.state if self._corrector else None,
            "loss": self._loss.state_dict(),
            "averages": self._average.means if self._average else {},
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
        self._rounds.load_state_dict(state["rounds"])
        device = next(self.program.parameters()).device
        self._loss.load_state_dict(placed(state["loss"], device))
        if self._rewinder:
            self._rewinder.early = placed(state["early"], device)
        if self._corrector:
            self._corrector.state = placed(state["correction"], device)
        if self._average:
            self._average.means = placed(state["averages"], device)
        self._rounds.arm(self.steps + 1)
