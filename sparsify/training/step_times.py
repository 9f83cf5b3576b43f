"""Times the steps of a run, and at its end compares a step with the final masks with a dense one. Nothing here changes the run."""

from __future__ import annotations

import dataclasses
import statistics
import time
import warnings
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sparsify.errors import SparsifyError
from sparsify.figures.intervals import median_interval
from sparsify.ir import Program
from sparsify.methods import Method
from sparsify.parts.samples import Batch
from sparsify.passes import FoldMasks, Pipeline, recording
from sparsify.tasks import Task
from sparsify.training.attaching import attach
from sparsify.training.settings import Settings, build_optimizer
from sparsify.training.state import SparseTrainer

Step = Callable[[SparseTrainer, Batch, Settings], Any]
LEAST_STEPS = 30
"""A process that made fewer steps of a run than this compares none."""
LEAST_PAIRS, MOST_PAIRS = 10, 50
WARM_UP = 3
"""Steps of each kind that are not timed: the first ones make the optimizer's state."""
SHARE = 0.05
"""The comparison takes about this share of the time of the run's steps."""
SHORTEST, LONGEST = 0.5, 30.0
"""Bounds on that time, in seconds."""
MOST_FOR_LEAST = 2.0
"""In a short run, the least number of pairs may take so many seconds."""


@dataclass(frozen=True)
class Compared:
    """A step with the final masks beside a step of a dense copy, timed in turns on one batch.

    Attributes:
        milliseconds: median time of a step with the final masks, without rounds, corrections, attacks and teachers.
        dense_milliseconds: median time of a step of the same program without masks.
        ratio: median over the pairs of the first time divided by the second; below 1 is faster than dense.
        interval: 95 % interval of that median.
        pairs: number of pairs.
    """

    milliseconds: float
    dense_milliseconds: float
    ratio: float
    interval: tuple[float, float]
    pairs: int


@dataclass(frozen=True)
class StepTimes:
    """The times of the steps of a run, which differ from run to run.

    Attributes:
        milliseconds: median time of a step: its forward and backward pass and all that the method does in it, rounds included; without
            loading data, evaluations between epochs, and checkpoints.
        steps: number of steps that were timed: those of this process, if the run was resumed.
        batch_size: samples per step.
        compared: the final masks beside dense; None if that was not measured.
        reason: why it was not measured; empty if it was.
    """

    milliseconds: float
    steps: int
    batch_size: int
    compared: Compared | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return numbers for JSON."""
        return dataclasses.asdict(self)


class Stopwatch:
    """Times the steps of a run, and remembers the last batch.

    Attributes:
        seconds: the time of each step.
        batch: the batch of the last step; None before the first.
    """

    def __init__(self) -> None:
        self.seconds = array("d")
        self.batch: Batch | None = None

    def timed(self, step: Step, trainer: SparseTrainer, batch: Batch, settings: Settings) -> Any:
        """Make a step of the run and time it."""
        self.batch, start = batch, time.perf_counter()
        result = step(trainer, batch, settings)
        self.seconds.append(time.perf_counter() - start)
        return result

    def times(
        self, step: Step, trainer: SparseTrainer, settings: Settings, task: str | Task | None
    ) -> StepTimes | None:
        """Return the times of a run that is finished, and compare its final masks with dense; None if no step was timed.

        Args:
            step: makes a step.
            trainer: the trainer of the run.
            settings, task: of the run.
        """
        if not self.seconds or self.batch is None:
            return None
        compared, reason = None, self._reason(trainer.program)
        if not reason:
            enough = min(max(SHARE * sum(self.seconds), SHORTEST), LONGEST)
            limit = max(enough, MOST_FOR_LEAST)
            try:
                compared = _compared(step, trainer, self.batch, settings, task, enough=enough, limit=limit)
                reason = "" if compared else f"{LEAST_PAIRS} pairs of steps take longer than {limit:.1f} s"
            except (
                SparsifyError,
                RuntimeError,
            ) as error:  # such as too little memory; a run does not fail for a measurement
                reason = f"a copy could not be trained ({(str(error).splitlines() or [type(error).__name__])[0][:200]})"
        found = 1000 * statistics.median(self.seconds)
        return StepTimes(found, len(self.seconds), settings.batch_size, compared, reason)

    def _reason(self, program: Program) -> str:
        """Return why there is nothing to compare, or the empty text."""
        if not program.masks():
            return "no weight has a mask"
        made = len(self.seconds)
        return f"this process made {made} steps, fewer than {LEAST_STEPS}" if made < LEAST_STEPS else ""


def _compared(
    step: Step,
    trainer: SparseTrainer,
    batch: Batch,
    settings: Settings,
    task: str | Task | None,
    *,
    enough: float,
    limit: float,
) -> Compared | None:
    """Time steps of two copies of a program in turns, for about ``enough`` seconds; the learning rate is 0, so that all compute the same.

    Returns:
        The comparison; None if the least number of pairs takes more than ``limit`` seconds.
    """
    began, device = time.perf_counter(), next(trainer.program.parameters()).device
    devices = [device] if device.type == "cuda" else []
    still = dataclasses.replace(settings, lr=0.0)
    taken: dict[str, list[float]] = {"masked": [], "dense": []}
    with torch.random.fork_rng(devices), recording(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainers = {"masked": _masked(trainer, still, task), "dense": _dense(trainer.program, still, task)}
        for turn in range(WARM_UP + MOST_PAIRS):
            names = list(taken) if turn % 2 else list(reversed(taken))
            for name in names:
                _wait(device)
                start = time.perf_counter()
                step(trainers[name], batch, still)
                _wait(device)
                taken[name].append(time.perf_counter() - start)
            spent, pair = time.perf_counter() - began, sum(values[-1] for values in taken.values())
            missing = WARM_UP + LEAST_PAIRS - 1 - turn
            if missing > 0 and spent + missing * pair > limit:
                return None
            if missing <= 0 and spent + pair > enough:
                break
    return _summary({name: values[WARM_UP:] for name, values in taken.items()})


def _summary(taken: Mapping[str, list[float]]) -> Compared:
    ratios = [ours / theirs for ours, theirs in zip(taken["masked"], taken["dense"], strict=True)]
    ours, theirs = (1000 * statistics.median(taken[name]) for name in ("masked", "dense"))
    return Compared(ours, theirs, statistics.median(ratios), median_interval(ratios), len(ratios))


def _masked(trainer: SparseTrainer, settings: Settings, task: str | Task | None) -> SparseTrainer:
    """Return a trainer of a copy with the same masks, in the forms that the run had at its end."""
    program = trainer.program.clone().train()
    made = attach(
        _still(trainer.method, program.costs().density),
        program,
        build_optimizer(program, settings),
        total_steps=2 * (WARM_UP + MOST_PAIRS),
        task=task,
        compact=settings.compact,
    )
    if _compact_weights(made.forms) != _compact_weights(trainer.forms):
        raise SparsifyError("the copy stores other weights compact than the run did")
    return made


def _dense(program: Program, settings: Settings, task: str | Task | None) -> SparseTrainer:
    """Return a trainer of a copy without masks."""
    copy = program.clone()
    Pipeline((FoldMasks(),)).apply(copy)
    copy.train()
    method = Method(name="without masks", density=1.0, initial="dense")
    return attach(method, copy, build_optimizer(copy, settings), total_steps=2 * (WARM_UP + MOST_PAIRS), task=task)


def _still(method: Method, density: float) -> Method:
    """Return a method that keeps the masks of another one and does nothing else."""
    return Method(
        name=method.name, density=density, initial="random", pattern=method.pattern, keep_dense=method.keep_dense
    )


def _compact_weights(forms: Mapping[str, str]) -> set[str]:
    """Return the names of the weights that are stored compact, by `SparseTrainer.forms`."""
    return {name for name, form in forms.items() if form.startswith("compact")}


def _wait(device: torch.device) -> None:
    """Wait for the work that was queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
