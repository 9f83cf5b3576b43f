"""`SparseTrainer`: a method at work on a program. Its `step` is the one call of a loop.

Weights are exactly 0 where inactive after every step: they are masked after it, whatever the optimizer and its state did. A step whose
gradients are not finite is left out, counted and said.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sparsify.arguments import checked
from sparsify.errors import TrainingError, TrainingWarning
from sparsify.ir import Program
from sparsify.methods import Method
from sparsify.tasks import Task
from sparsify.training.averaging import WeightAverage, check_averaging, reestimate_batch_norm
from sparsify.training.checkpoint import placed
from sparsify.training.correction import Corrector
from sparsify.training.gradients import Gradients
from sparsify.training.loss import RunningLoss
from sparsify.training.meaning import Meaning, read
from sparsify.training.mechanism import ABSENT, Mechanism, hooks
from sparsify.training.optimizers import Joined, Optimizers, check_single_process
from sparsify.training.probe import COUNTED, Closure, Sweep
from sparsify.training.random_masks import SALT, RandomMasks
from sparsify.training.rewinding import Rewinder
from sparsify.training.rewriting import rewrite
from sparsify.training.rounds import Rounds
from sparsify.training.slots import filled
from sparsify.training.stepping import Stepper
from sparsify.training.teaching import Teacher, Teaching
from sparsify.training.zeros import Zeros


class SparseTrainer(Joined):
    """A method at work on a program. Made by `attach`.

    It is an optimizer whose `step` is a training step of the method, so schedulers and a GradScaler take it; its state dict is that of the
    run, and is saved beside those of the program and of the optimizer.

    Attributes:
        optimizer: what was attached; several as one.
        task: what the outputs of the program mean.
        steps: optimizer steps taken, rounds that replaced one and steps that were skipped included.
        counts: rounds, skipped rounds, skipped steps (their gradients were not finite), probes (evaluations of a batch beside the step's
            own), and forward and backward passes, each of one batch, those of the steps included.
        left_dense: why each weight that could have a mask has none.
        schedule: the steps that the durations of the method stand for in this run, by ``slot.option``; ``first_round`` and ``last_round``.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> program = sp.trace(torch.nn.Linear(8, 4), torch.rand(2, 8)).train()
        >>> optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
        >>> trainer = sp.attach(sp.methods.static_random(density=0.25), program, optimizer, total_steps=10)
        >>> trainer.steps, trainer.density
        (0, 0.25)
    """

    _step_supports_amp_scaling = True  # GradScaler.step(trainer) hands over its scale and what it found

    @checked(TrainingError)
    def __init__(
        self,
        method: Method,
        program: Program,
        optimizers: Optimizers,
        *,
        total_steps: int,
        seed: int,
        epoch_steps: int | None = None,
        sweep: Sweep | None = None,
        teacher: Teacher | None = None,
        task: str | Task | None = None,
    ) -> None:
        super().__init__(optimizers.each)
        self.method, self.program, self._optimizers = method, program, optimizers
        self.optimizer = self.each[0] if len(self.each) == 1 else optimizers
        self._meaning = Meaning(task, program, method)
        self.task = self._meaning.task
        self.total_steps, self.steps = total_steps, 0
        self.counts: dict[str, int] = dict.fromkeys(COUNTED, 0)
        self._generator = torch.Generator().manual_seed((seed + SALT) % 2**63)
        slots = filled(method, total_steps)
        self._rewinding = slots.rewinding
        self._gradients = Gradients(program, optimizers, self.counts)
        self._rounds = Rounds(slots.topology, program, optimizers, self._gradients, self.counts, self._generator)
        self._loss = RunningLoss(method, slots.objective, self.task)
        self._teaching = Teaching(method, teacher, program, self.counts, self.task)
        if slots.averaging:
            check_averaging(method, slots.averaging, self._masks_change, total_steps)
        self.left_dense = rewrite(method, program, optimizers, self._rounds, slots.correction, self._generator)
        self._rounds.check(method.name, method.density, total_steps)
        self.schedule = {**slots.durations, **self._rounds.span}
        random = RandomMasks(program, seed=(seed + 2 * SALT) % 2**63)
        zeros = Zeros(program)
        corrector = slots.correction and Corrector(
            slots.correction, method.name, program, random, self.counts, epoch_steps=epoch_steps, sweep=sweep
        )
        rewinder = slots.rewinding and Rewinder(slots.rewinding, program, optimizers, corrector)
        average = slots.averaging and WeightAverage(slots.averaging, program)
        begun = (self._rounds, rewinder, zeros, average, self._loss, self._teaching, random, corrector, self._gradients)
        self._mechanisms: tuple[Mechanism, ...] = tuple(filter(None, begun))
        self._before_step, self._after_step, self._join = (
            hooks(self._mechanisms, name) for name in ("before_step", "after_step", "join")
        )
        self._stepper = Stepper(optimizers, zeros, random if method.holds_hidden else None, method.name)
        for mechanism in self._mechanisms:
            mechanism.start()
        self._link()

    def _link(self) -> None:
        """Find what belongs to this very program and these very optimizers."""
        for mechanism in self._mechanisms:
            mechanism.link(self.steps + 1)
        self._say_what_is_left()

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseTrainer:
        made = object.__new__(type(self))
        memo[id(self)] = made
        for name, value in self.__dict__.items():
            if name != "step":  # a scheduler puts one of its own there
                made.__dict__[name] = copy.deepcopy(value, memo)
        made._link()
        return made

    def _masks_change(self, step: int) -> bool:
        return self._rounds.due(step) or (self._rewinding is not None and step in self._rewinding.at)

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
        return self._rewinding.position(step, self.total_steps) if self._rewinding else (step, self.total_steps)

    def readings(self) -> dict[str, float]:
        """Figures of the method's own at this step, by name, for the history of a run."""
        return {name: value for read in hooks(self._mechanisms, "readings") for name, value in read().items()}

    # --- the loop

    def loss(self, output: Any, target: Any, *, inputs: Any = None, label_smoothing: float = 0.0) -> Tensor:
        """The method's loss of a batch: that of the task, unless the method has its own or a teacher. Needed for those, and good for all.

        Args:
            output: what calling the program in train mode returned.
            target: of the batch, as the task takes it; class numbers int [N] for classification.
            inputs: what the program was called with, for a method that has a teacher.
            label_smoothing: of the task's loss, in [0, 1).

        Raises:
            TrainingError: If the program is in eval mode, output and target do not fit the task, labels should be smoothed where the
                method has a loss of its own, or the teacher cannot be asked.
        """
        if self._meaning.follow(self.program):
            self.task = self._loss.task = self._teaching.task = self._meaning.task
        found = read(self.program, self.task, output)
        loss = self._loss(found, target, self.steps + 1, label_smoothing=label_smoothing)
        for join in self._join:
            loss = join(loss, found, target, inputs)
        return loss

    def correct(self, closure: Closure | None = None, *, scaler: Any = None) -> None:
        """Correct the gradients of the coming step now, for loops that clip gradients between; `step` does it otherwise.

        Args:
            closure: as for `step`.
            scaler: as for `step`.

        Raises:
            TrainingError: As `step` does.
        """
        if scaler is not None:
            self._gradients.unscale(scaler)
        step = self.steps + 1
        if self._gradients.look(step) and self._before_step and not self._rounds.replaces(step):
            for act in self._before_step:
                act(step, closure)

    def step(self, closure: Closure | None = None, *, scaler: Any = None) -> Any:
        """Optimizer step, then a topology update when one is due. Call it after ``loss.backward()``.

        A step whose gradients are not finite changes nothing but ``counts["skipped_steps"]``.

        Args:
            closure: the loss of the current batch by another forward pass, without backward; for corrections that evaluate it again. For
                an optimizer that evaluates the batch itself (LBFGS), the closure its own ``step`` takes: zero the gradients, compute the
                loss, ``backward()``, return the loss.
            scaler: a `torch.amp.GradScaler` whose ``scale(loss)`` was called backward; gradients are divided by its scale first, unless
                ``scaler.unscale_`` was called for the optimizers. Call ``scaler.update()`` after the step.

        Returns:
            What the closure returned first, for an optimizer that evaluates the batch itself; else None.

        Raises:
            TrainingError: If the program is in eval mode; no gradient is there, or gradients were not finite many times in a row; the
                method needs a closure, a sweep or its own loss; or the dense gradient of a due round did not arrive.
        """
        if not self.program.training or not 0 < self.steps < self.total_steps:
            self._check_place()
        step, losses = self.steps + 1, list[Any]()
        if self._optimizers.evaluates:
            moved = self._evaluated_step(step, closure, losses)
        else:
            if "found_inf" in self.__dict__:
                self._gradients.take(self.__dict__["grad_scale"], self.__dict__["found_inf"])
            self.correct(closure, scaler=scaler)
            moved = bool(self._gradients.finite)
            if moved and not self._rounds.replaces(step):
                self._stepper.step()
        self.steps = step
        for key in ("forwards", "backwards"):
            self.counts[key] += len(losses) if self._optimizers.evaluates else 1
        for act in self._after_step:
            act(step, moved)
        if step == self._rounds.last_pruning:
            self._say_what_is_left()
        return losses[0] if losses else None

    def _check_place(self) -> None:
        """Refuse a step in eval mode, and in several processes; say where the run is over."""
        if not self.program.training:
            raise TrainingError(
                "trainer.step() found the program in eval mode, in which nothing is recorded for rounds. Call program.train() before the "
                "forward pass of a training step, and again after each evaluation."
            )
        if self.steps == 0:
            check_single_process(self.method)
        if self.steps == self.total_steps:
            self._warn(f"step {self.steps + 1} is beyond total_steps ({self.total_steps}): schedules have ended there.")

    def _evaluated_step(self, step: int, closure: Closure | None, losses: list[Any]) -> bool:
        """The step of an optimizer that evaluates the batch itself; ``losses`` gets what each evaluation returns."""
        if closure is None:
            raise TrainingError(
                "an attached optimizer evaluates the batch itself: call trainer.step(closure) with a function that zeroes the gradients, "
                "computes the loss, calls backward() and returns the loss."
            )

        def evaluated() -> Any:
            self._rounds.forget_gradients()  # a round reads those of the last evaluation
            loss = closure()
            for act in self._before_step:
                act(step, None)
            losses.append(loss)
            return loss

        if self._rounds.replaces(step):
            evaluated()
            return self._gradients.look(step)
        return self._stepper.evaluated_step(evaluated)

    def _warn(self, message: str) -> None:
        warnings.warn(message, TrainingWarning, stacklevel=4)

    def _say_what_is_left(self) -> None:
        """Let the program say, when it is exported, that it is not yet as sparse as asked for."""
        last = self._rounds.last_pruning
        self.program.unfinished = (
            f"method {self.method.name!r} reaches density {self.method.density:.4g} on step {last} of {self.total_steps}"
            if self.steps < last
            else ""
        )

    def finish(self, batches: Iterable[Any] = (), *, stopped_early: bool = False) -> None:
        """End the run: remove random masks, load averaged weights, and take batch-norm statistics for what is left.

        Args:
            batches: training inputs [N, ...], tuples where the program has several; one forward pass in train mode each. Needed
                where the program has batch norms and the method averages weights or has random masks.
            stopped_early: the loop ended by a criterion of its own; that rounds are left is then said only if the density is not reached.

        Raises:
            TrainingError: If batches are needed and there are none.
        """
        self._stepper.release()
        if self.steps < self._rounds.last and not (stopped_early and not self.program.unfinished):
            asked = (
                f" at density {self.density:.4g}, where {self.method.density:.4g} was asked for"
                if self.program.unfinished
                else ""
            )
            self._warn(
                f"the run ends on step {self.steps} of {self.total_steps}{asked}; method {self.method.name!r} has rounds until step "
                f"{self._rounds.last}. Train to the end, or attach with the total_steps that are taken."
            )
        if any([finish() for finish in hooks(self._mechanisms, "finish")]):
            self.counts["forwards"] += reestimate_batch_norm(self.program, batches)
            self.program.verify()

    # --- state

    def state_dict(self) -> dict[str, Any]:
        """All that is not in the program's and the optimizer's own state dicts; loads with ``weights_only=True``."""
        return {
            "method": self.method.name,
            "total_steps": self.total_steps,
            "steps": self.steps,
            "counts": dict(self.counts),
            "generator": self._generator.get_state(),
            **ABSENT,
            **{mechanism.key: mechanism.state_dict() for mechanism in self._mechanisms if mechanism.key},
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
        self.steps = int(state["steps"])
        self.counts.update(state["counts"])
        self._generator.set_state(state["generator"])
        device = next(self.program.parameters()).device
        for mechanism in self._mechanisms:
            if mechanism.key:
                mechanism.load_state_dict(placed(state[mechanism.key], device))
        self._link()
