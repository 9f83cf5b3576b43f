"""`SparseTrainer`: trains a program with a method. A loop only has to call its `step`.

Inactive weights are exactly 0 after every step, because they are masked after it, whatever the optimizer did. A step whose gradients are
not finite is skipped, counted and reported.
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
from sparsify.parts.samples import Batch
from sparsify.parts.trees import Tree
from sparsify.tasks import Task
from sparsify.training.active_steps import ActiveSteps
from sparsify.training.averaging import WeightAverage, check_averaging, reestimate_batch_norm
from sparsify.training.checkpoint import placed
from sparsify.training.compact_weights import Compact, CompactWeights
from sparsify.training.correction import Corrector
from sparsify.training.gradients import Gradients
from sparsify.training.individual import Calibration, individual_of
from sparsify.training.loss import RunningLoss
from sparsify.training.meaning import Meaning, read
from sparsify.training.mechanism import ABSENT, Mechanism, hooks
from sparsify.training.mixing import Mixer
from sparsify.training.optimizers import Joined, Optimizers, check_single_process
from sparsify.training.probe import COUNTED, Closure, Sweep
from sparsify.training.random_masks import SALT, RandomMasks
from sparsify.training.rewinding import Rewinder
from sparsify.training.rewriting import rewrite
from sparsify.training.rounds import Rounds
from sparsify.training.savings import Ledger, Savings
from sparsify.training.slots import filled
from sparsify.training.stepping import Stepper
from sparsify.training.teaching import Teacher, Teaching, past_of
from sparsify.training.zeros import Zeros


class SparseTrainer(Joined):
    """Trains a program with a method. Made by `attach`.

    It is an optimizer whose `step` is a training step of the method, so schedulers and a GradScaler accept it. Its state dict holds the
    state of the run; save it together with those of the program and of the optimizer.

    Attributes:
        optimizer: the attached optimizer; several are joined into one.
        task: what the outputs of the program mean.
        steps: number of optimizer steps so far, including rounds that replaced one and skipped steps.
        counts: numbers of rounds, skipped rounds, skipped steps (gradients that were not finite), probes (evaluations of a batch besides
            the step's own), and forward and backward passes of one batch each, including those of the steps. The micro-batches whose
            gradients a step accumulates are one batch.
        left_dense: by name of each maskable weight without a mask, the reason.
        schedule: the number of steps of each duration of the method in this run, by ``slot.option``; and ``first_round``, ``last_round``.

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
        calibration: Calibration | None = None,
        task: str | Task | None = None,
        compact: Compact = "auto",
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
        active = ActiveSteps(program, optimizers, compact)
        self._gradients = Gradients(program, optimizers, active, self.counts)
        self._stored = CompactWeights(program, optimizers, active, mode=compact, last=total_steps)
        self._rounds = Rounds(
            slots.topology, program, optimizers, self._gradients, self.counts, self._generator, self._stored
        )
        self._ledger = Ledger(program, optimizers, self._rounds, self._stored, active, self.counts)
        self._loss = RunningLoss(method, slots.objective, self.task)
        self._teaching = Teaching(method, teacher, program, self.counts, self.task)
        individual = individual_of(method, program, calibration, self.counts)
        past = past_of(slots.self_distillation, method.name, program, self.counts, epoch_steps, total_steps)
        self._mixer = method.mixing and Mixer(method.mixing, method, program, self._generator, self.counts, self.task)
        if slots.averaging:
            check_averaging(method, slots.averaging, self._masks_change, total_steps)
        self.left_dense = rewrite(method, program, optimizers, self._rounds, slots.correction, self._generator)
        self._rounds.check(method.name, method.density, total_steps)
        self.schedule = {**slots.durations, **self._rounds.span}
        random = RandomMasks(program, seed=(seed + 2 * SALT) % 2**63, layouts=self._stored.layouts)
        zeros = Zeros(program)
        corrector = slots.correction and Corrector(
            slots.correction,
            method.name,
            program,
            random,
            self.counts,
            epoch_steps=epoch_steps,
            sweep=sweep,
            layouts=self._stored.layouts,
        )
        rewinder = slots.rewinding and Rewinder(slots.rewinding, program, optimizers, self._stored.layouts, corrector)
        average = slots.averaging and WeightAverage(slots.averaging, program)
        self._stored.prepare(zeros)
        active.prepare()
        begun = (
            self._ledger, self._rounds, active, self._stored, rewinder, zeros, average, self._loss, self._teaching, individual, past,
            self._mixer, random, corrector, self._gradients,
        )  # fmt: skip
        self._mechanisms: tuple[Mechanism, ...] = tuple(filter(None, begun))
        self._before_step, self._after_step, self._join = (
            hooks(self._mechanisms, name) for name in ("before_step", "after_step", "join")
        )
        self._stepper = Stepper(optimizers, zeros, active, random if method.holds_hidden else None, method.name)
        for mechanism in self._mechanisms:
            mechanism.start()
        self._link()

    def _link(self) -> None:
        """Look up objects of this program and these optimizers."""
        for mechanism in self._mechanisms:
            mechanism.link(self.steps + 1)
        self._say_what_is_left()

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseTrainer:
        made = object.__new__(type(self))
        memo[id(self)] = made
        for name, value in self.__dict__.items():
            if name != "step":  # a scheduler replaces this attribute by a wrapper
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
        """By masked weight, the share of its positions that have ever been active, in [0, 1]."""
        return self._rounds.coverage()

    @property
    def grown(self) -> dict[str, int]:
        """By masked weight, how many positions rounds have activated so far."""
        return dict(self._rounds.grown)

    @property
    def forms(self) -> dict[str, str]:
        """By masked weight, since which step it is stored compact, or why it is stored dense with a mask."""
        return self._stored.forms

    @property
    def savings(self) -> Savings:
        """Multiply-accumulates and bytes of the steps so far, beside those of a dense run."""
        return self._ledger.found

    def position(self, step: int) -> tuple[int, int]:
        """Return where the learning-rate schedule stands after ``step`` steps, and its length in steps.

        They differ from ``step`` and ``total_steps`` if the method rewinds.
        """
        return self._rewinding.position(step, self.total_steps) if self._rewinding else (step, self.total_steps)

    def readings(self) -> dict[str, float]:
        """Return the method's own figures at this step, by name, for the history of a run."""
        return {name: value for read in hooks(self._mechanisms, "readings") for name, value in read().items()}

    # --- the loop

    def prepare(self, inputs: Tree, target: Tree) -> Batch:
        """Return the inputs for the program and the target for `loss`; once per batch. Methods that mix samples change them at random.

        Raises:
            TrainingError: If the method mixes samples, and an input is not of floating-point numbers.
        """
        return Batch(inputs, target) if self._mixer is None else self._mixer.prepare(inputs, target)

    def loss(self, output: Any, target: Any, *, inputs: Any = None, label_smoothing: float = 0.0) -> Tensor:
        """Compute the loss of a batch: the loss of the task, or the method's own, with the term of its teacher.

        Methods with their own loss, a teacher or mixed samples require this function; it works for all methods.

        Args:
            output: what calling the program in train mode returned.
            target: target of the batch, in the form of the task; int class numbers [N] for classification. Or what `prepare` made of it.
            inputs: the inputs of the call, for a method with a teacher or one that ranks mixed samples.
            label_smoothing: label smoothing of the task's loss, in [0, 1).

        Raises:
            TrainingError: If the program is in eval mode, output and target do not fit the task, labels should be smoothed although the
                method has its own loss, or the teacher cannot answer.
        """
        if self._meaning.follow(self.program):
            self.task = self._loss.task = self._teaching.task = self._meaning.task
        found = read(self.program, self.task, output)
        with torch.autocast(next(self.program.parameters()).device.type, enabled=False):
            loss = self._loss(found, target, self.steps + 1, label_smoothing=label_smoothing)
        for join in self._join:
            loss = join(loss, found, target, inputs)
        return loss

    def correct(self, closure: Closure | None = None, *, scaler: Any = None) -> None:
        """Correct the gradients of the coming step now, for loops that clip them before the step; otherwise `step` corrects them.

        Args:
            closure: as for `step`.
            scaler: as for `step`.

        Raises:
            TrainingError: As `step` does.
        """
        self._stored.settle()
        if scaler is not None:
            self._gradients.unscale(scaler)
        step = self.steps + 1
        if self._gradients.look(step) and self._before_step and not self._rounds.replaces(step):
            for act in self._before_step:
                act(step, closure)

    def step(self, closure: Closure | None = None, *, scaler: Any = None) -> Any:
        """Make an optimizer step, then a topology update if one is due. Call it after ``loss.backward()``.

        A step whose gradients are not finite only increments ``counts["skipped_steps"]``.

        Args:
            closure: computes the loss of the current batch by another forward pass, without backward; for corrections that evaluate the
                batch again. For an optimizer that evaluates the batch itself (LBFGS), the closure of its own ``step``: zero the gradients,
                compute the loss, call ``backward()``, return the loss.
            scaler: a `torch.amp.GradScaler` whose scaled loss was used for ``backward()``. Gradients are first divided by its scale,
                unless ``scaler.unscale_`` was called for the optimizers. Call ``scaler.update()`` after the step.

        Returns:
            What the closure returned first, for an optimizer that evaluates the batch itself; else None.

        Raises:
            TrainingError: If the program is in eval mode; there are no gradients, or they were not finite many times in a row; the method
                needs a closure, a sweep or its own loss; or the dense gradient of a due round did not arrive.
        """
        if not self.program.training or not 0 < self.steps < self.total_steps:
            self._check_place()
        self._stored.settle()
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
        """Refuse a step in eval mode or in several processes; warn if the run is already over."""
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
        """Make the step of an optimizer that evaluates the batch itself; appends the result of each evaluation to ``losses``."""
        if closure is None:
            raise TrainingError(
                "an attached optimizer evaluates the batch itself: call trainer.step(closure) with a function that zeroes the gradients, "
                "computes the loss, calls backward() and returns the loss."
            )

        def evaluated() -> Any:
            self._rounds.forget_gradients()  # a round reads the gradients of the last evaluation
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
        """Record in the program that it is not yet as sparse as requested, so that its export can say so."""
        last = self._rounds.last_pruning
        self.program.unfinished = (
            f"method {self.method.name!r} reaches density {self.method.density:.4g} on step {last} of {self.total_steps}"
            if self.steps < last
            else ""
        )

    def finish(self, batches: Iterable[Any] = (), *, stopped_early: bool = False) -> None:
        """End the run: remove random masks, load averaged weights, and estimate batch-norm statistics for the final weights.

        Args:
            batches: training inputs [N, ...], or tuples if the program has several inputs; each takes one forward pass in train mode.
                Required if the program has batch norms and the method averages weights or has random masks.
            stopped_early: True if the loop ended by its own criterion; missing rounds are then only reported if the density was missed.

        Raises:
            TrainingError: If batches are required and there are none.
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
        """Return everything that is not in the state dicts of program and optimizer; it loads with ``weights_only=True``."""
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
        """Continue from a saved state; load the state dicts of program and optimizer as well.

        Raises:
            TrainingError: If the state belongs to another method or run length.
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
            if mechanism.key in state:
                mechanism.load_state_dict(placed(state[mechanism.key], device))
        self._link()
