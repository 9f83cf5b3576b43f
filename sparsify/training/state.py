"""`SparseTrainer`: a method at work on a program. Its `step` is the one call of a loop.

Weights are exactly 0 where inactive after every step: they are masked after it, whatever the optimizer and its state did. A step whose
gradients are not finite is left out, counted and said.
"""

from __future__ import annotations

import contextlib
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
from sparsify.passes import Pipeline, RemoveRandomMasks
from sparsify.tasks import Task
from sparsify.training.averaging import WeightAverage, check_averaging, reestimate_batch_norm
from sparsify.training.checkpoint import placed
from sparsify.training.correction import Corrector
from sparsify.training.gradients import Gradients, are_finite
from sparsify.training.groups import adopt
from sparsify.training.initial_masks import insert_masks
from sparsify.training.loss import RunningLoss
from sparsify.training.meaning import meaning, read
from sparsify.training.optimizers import Optimizers, Watch, check_single_process
from sparsify.training.probe import COUNTED, Closure, Sweep
from sparsify.training.random_masks import SALT, RandomMasks
from sparsify.training.rewinding import Rewinder
from sparsify.training.rounds import Rounds
from sparsify.training.slots import filled
from sparsify.training.teaching import Teacher, Teaching
from sparsify.training.zeros import Zeros


class SparseTrainer:
    """A method at work on a program. Made by `attach`.

    Attributes:
        optimizer: those that were attached, as one.
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

    __class__ = property(lambda self: torch.optim.Optimizer)  # type: ignore[assignment]  # torch's schedulers ask for it
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
        self.method, self.program, self.optimizer = method, program, optimizers
        self.task = meaning(task, program, method)
        self.total_steps, self.steps, self._corrected = total_steps, 0, False
        self.counts: dict[str, int] = dict.fromkeys(COUNTED, 0)
        self.left_dense: dict[str, str] = {}
        self._generator = torch.Generator().manual_seed((seed + SALT) % 2**63)
        slots = filled(method, total_steps)
        self._rounds = Rounds(slots.topology, program, optimizers, self._generator)
        self._gradients = Gradients(program, optimizers, self.counts, self._rounds.named)
        self._rewinder = Rewinder(slots.rewinding, program, optimizers) if slots.rewinding else None
        self._average = WeightAverage(slots.averaging) if slots.averaging else None
        if self._average:
            check_averaging(method, self._average.plan, self._masks_change, total_steps)
        self._loss = RunningLoss(method, slots.objective, self.task)
        self._teaching = Teaching(method, teacher, program, self.counts)
        if method.initial != "dense" or slots.topology is not None:
            tapped = self._rounds.needs_gradient or (slots.correction is not None and slots.correction.dense)
            self.left_dense = insert_masks(method, program, optimizers, self._generator, tapped=tapped)
            self._rounds.check(method.name, method.density, total_steps)
        self.schedule = {**slots.durations, **self._rounds.span}
        Pipeline(method.passes).apply(program)
        added = adopt(program, optimizers)
        if optimizers.evaluates and (added or slots.correction):
            raise TrainingError(
                f"method {method.name!r} {'corrects gradients' if slots.correction else 'adds parameters'}, which an optimizer that "
                f"evaluates the batch itself (LBFGS) does not allow. Attach another optimizer, such as SGD or AdamW."
            )
        self._random = RandomMasks(program, seed=(seed + 2 * SALT) % 2**63)
        correction, known = slots.correction, (method.name, program, self._random, self.counts)
        self._corrector = Corrector(correction, *known, epoch_steps=epoch_steps, sweep=sweep) if correction else None
        self._rounds.start()
        if self._rewinder:
            self._rewinder.keep(0)
        self._random.draw()
        self._take_over()

    def _take_over(self) -> None:
        """What belongs to this very program and these very optimizers."""
        self._zeros, self._watch = Zeros(self.program), Watch(self.optimizer, self.method.name)
        self._zeros.vouch()
        self._rounds.find_taps()
        self._rounds.arm(self.steps + 1)
        self._say_what_is_left()

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseTrainer:
        made = object.__new__(type(self))
        memo[id(self)] = made
        for name, value in self.__dict__.items():
            if name not in ("_zeros", "_watch", "step"):  # a scheduler puts a ``step`` of its own there
                made.__dict__[name] = copy.deepcopy(value, memo)
        made._take_over()
        return made

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
        found = read(self.program, self.task, output)
        loss = self._loss(found, target, self.steps + 1, label_smoothing=label_smoothing)
        return self._teaching.joined(loss, found, inputs)

    def correct(self, closure: Closure | None = None, *, scaler: Any = None) -> None:
        """Correct the gradients of the coming step now, for loops that clip gradients between; `step` does it otherwise.

        Args:
            closure: as for `step`.
            scaler: as for `step`.

        Raises:
            TrainingError: As `step` does.
        """
        self._loss.check_used()
        if scaler is not None:
            self._gradients.unscale(scaler)
        step = self.steps + 1
        finite = self._gradients.look(step)
        if finite and self._corrector and not self._corrected and not self._rounds.replaces(step):
            self._corrector.apply(step, closure)
            self._corrected = True

    def step(self, closure: Closure | None = None, *, scaler: Any = None) -> None:
        """Optimizer step, then a topology update when one is due. Call it after ``loss.backward()``.

        A step whose gradients are not finite changes nothing but ``counts["skipped_steps"]``.

        Args:
            closure: the loss of the current batch by another forward pass, without backward; for corrections that evaluate it again. For
                an optimizer that evaluates the batch itself (LBFGS), the closure its own ``step`` takes: zero the gradients, compute the
                loss, ``backward()``, return the loss.
            scaler: a `torch.amp.GradScaler` whose ``scale(loss)`` was called backward; gradients are divided by its scale first, unless
                ``scaler.unscale_`` was called for the optimizers. Call ``scaler.update()`` after the step.

        Raises:
            TrainingError: If the program is in eval mode; no gradient is there, or gradients were not finite many times in a row; the
                method needs a closure, a sweep or its own loss; or the dense gradient of a due round did not arrive.
        """
        if not self.program.training:
            raise TrainingError(
                "trainer.step() found the program in eval mode, in which nothing is recorded for rounds. Call program.train() before the "
                "forward pass of a training step, and again after each evaluation."
            )
        if self.steps == 0:
            check_single_process(self.method)
        if self.steps == self.total_steps:
            self._warn(f"step {self.steps + 1} is beyond total_steps ({self.total_steps}): schedules have ended there.")
        if self.optimizer.evaluates:
            self._loss.check_used()
            moved = self._evaluated_step(closure)
        else:
            if "found_inf" in self.__dict__:
                self._gradients.take(self.__dict__["grad_scale"], self.__dict__["found_inf"])
            self.correct(closure, scaler=scaler)
            moved = self._gradients.look(self.steps + 1)
            if moved and not self._rounds.replaces(self.steps + 1):
                self._optimize(None)
        self.steps += 1
        for key in ("forwards", "backwards"):
            self.counts[key] += 1
        if self._rounds.due(self.steps):
            changed = moved and self._rounds.update(self.steps, scale=self._gradients.scale)
            self.counts["rounds" if changed else "skipped_rounds"] += 1
            if changed and self.optimizer.evaluates:
                self.optimizer.state.clear()  # its memory of the loss is of other masks
        self._rewind()
        self._zeros.vouch()
        if self._average:
            self._average.take(self.program, self.steps)
        self._loss.end_step()
        self._random.draw()
        self._corrected = False
        self._rounds.arm(self.steps + 1)
        self._gradients.end_step(self.steps, skipped=not moved)
        if self.steps == self._rounds.last_pruning:
            self._say_what_is_left()

    def _optimize(self, closure: Any) -> None:
        held = self.method.holds_hidden and self._random.sites
        with self._random.hidden_still() if held else contextlib.nullcontext():
            self._watch.stepping = True
            try:
                self.optimizer.step(closure)
            finally:
                self._watch.stepping = False
        self._zeros.keep()

    def _evaluated_step(self, closure: Closure | None) -> bool:
        """The step of an optimizer that evaluates the batch itself; put back where it ends in weights that are not finite."""
        if closure is None:
            raise TrainingError(
                "an attached optimizer evaluates the batch itself: call trainer.step(closure) with a function that zeroes the gradients, "
                "computes the loss, calls backward() and returns the loss."
            )

        def evaluated() -> Any:
            self._rounds.forget_gradients()  # a round reads those of the last evaluation
            return closure()

        if self._rounds.replaces(self.steps + 1):
            evaluated()
            return self._gradients.look(self.steps + 1)
        parameters = self.optimizer.parameters()
        before = [parameter.detach().clone() for parameter in parameters]
        self._optimize(evaluated)
        if are_finite([parameter.detach() for parameter in parameters]):
            return True
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        self.optimizer.state.clear()
        return False

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimizers, for a GradScaler and learning-rate schedulers."""
        return self.optimizer.param_groups

    @property
    def defaults(self) -> dict[str, Any]:
        """Those of the optimizers, for learning-rate schedulers."""
        return self.optimizer.defaults

    def _warn(self, message: str) -> None:
        warnings.warn(message, TrainingWarning, stacklevel=3)

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
        self._watch.release()
        self._zeros.release()
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
            "skipped_in_a_row": self._gradients.skipped_in_a_row,
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
        self.steps, self._gradients.skipped_in_a_row = int(state["steps"]), int(state["skipped_in_a_row"])
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
        self._rounds.find_taps()
        self._rounds.arm(self.steps + 1)
        self._say_what_is_left()
