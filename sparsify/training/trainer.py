"""The training loop of `sparsify run`, built on `SparseTrainer`. Program, data, settings and seed determine a run completely."""

from __future__ import annotations

import functools
import math
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from sparsify.errors import CheckpointError, TrainingError
from sparsify.files import strict_json, write_atomically
from sparsify.ir import Program, surgery
from sparsify.ir.evaluation import outputs_of
from sparsify.methods import Method
from sparsify.parts.mixing import MixedTarget, own_target, weighed
from sparsify.parts.samples import Batch, Samples
from sparsify.parts.trees import Tree, rows_of
from sparsify.tasks import Task
from sparsify.training.attaching import attach
from sparsify.training.batch_loss import BatchLoss, attacked
from sparsify.training.batches import Batches
from sparsify.training.checkpoint import load_checkpoint, save_checkpoint
from sparsify.training.individual import set_aside
from sparsify.training.meaning import meaning
from sparsify.training.mechanism import ABSENT
from sparsify.training.plan import check_warmup, find_device, steps_per_epoch
from sparsify.training.probe import Closure
from sparsify.training.resumption import check_content, fitting
from sparsify.training.run_state import RunState
from sparsify.training.savings import Savings
from sparsify.training.settings import Settings, build_optimizer
from sparsify.training.state import SparseTrainer
from sparsify.training.step_times import StepTimes, Stopwatch
from sparsify.training.teaching import Teacher


@dataclass(frozen=True)
class Trained:
    """The results of training, besides the program.

    Attributes:
        history: one row per epoch; see `sparsify.training.history`.
        counts: numbers of steps and samples, and the counts of `SparseTrainer`.
        coverage: the coverage of each masked weight at the end, in [0, 1].
        schedule: the entries of `SparseTrainer.schedule`, the steps of the run (``total_steps``) and the number of rounds (``rounds``).
        forms: how each masked weight was stored in training, as in `SparseTrainer.forms`.
        savings: multiply-accumulates and bytes of the steps, beside those of a dense run.
        times: times of the steps, which differ from run to run, and those of a step with the final masks beside a dense one; None if they
            were not asked for, or this process made no step.
    """

    history: list[dict[str, Any]]
    counts: dict[str, int]
    coverage: dict[str, float]
    schedule: dict[str, int]
    forms: dict[str, str]
    savings: Savings
    times: StepTimes | None = None


class Interrupted(Exception):
    """The user interrupted the run; the current step was finished and a checkpoint written."""


Progress = Callable[[dict[str, Any]], None]
CHECKPOINT = "checkpoint.pt"


def train(
    method: Method,
    program: Program,
    data: Samples,
    validation: Samples,
    settings: Settings,
    *,
    folder: Path,
    key: str,
    task: str | Task | None = None,
    teacher: Program | None = None,
    resume: bool = False,
    timed: bool = False,
    on_step: Progress | None = None,
) -> Trained:
    """Train ``program`` in place; writes ``checkpoint.pt`` and ``history.jsonl`` to ``folder``.

    Args:
        method: the method to train with.
        program: of stage TRACED.
        data: training samples with their targets (`sparsify.parts.samples.TensorSamples` for tensors).
        validation: samples that are evaluated after each epoch; only early stopping chooses by them.
        settings: settings of the run.
        folder: folder of the run; created if missing.
        key: identifies recipe, data and teacher; a checkpoint with another key is refused.
        teacher: teacher program for methods that need one; it does not change.
        task: what the outputs mean, as for `attach`.
        resume: continue from the checkpoint; the result is bit for bit that of an uninterrupted run.
        timed: time the steps, and compare some with dense ones after the run (`sparsify.training.step_times`); the result of the run is
            the same.
        on_step: called after each step with step, total, loss, accuracy if the task makes decisions, and density.

    Raises:
        TrainingError: If the loss is not finite, there are fewer samples than a batch, or the warm-up is not shorter than the run.
        CheckpointError: If the checkpoint cannot be used.
        Interrupted: After SIGINT or SIGTERM.
    """
    plan = {"batch_size": settings.batch_size, "early_stop": settings.early_stop, "device": settings.device}
    per_epoch = steps_per_epoch(method, len(data), **plan)
    total = per_epoch * settings.epochs
    check_warmup(settings.warmup, total)
    device = find_device(settings.device)
    data, calibration = set_aside(method.individual, data, device, seed=settings.seed)
    batches = Batches(data, settings, device)
    surgery.move(program, device)
    torch.manual_seed(settings.seed)
    optimizer = build_optimizer(program, settings)

    def sweep() -> Iterator[Closure]:
        """Yield the losses of an epoch of training batches in a new random order."""
        for batch in batches.sweep(trainer.steps):
            yield loss_of(trainer, batch, settings)

    trainer = attach(
        method,
        program,
        optimizer,
        total_steps=total,
        seed=settings.seed,
        epoch_steps=per_epoch,
        sweep=sweep,
        teacher=None if teacher is None else _answering(teacher, device, meaning(task, program, method).output or ""),
        calibration=calibration,
        task=task,
        compact=settings.compact,
    )
    watch = Stopwatch()
    run = RunState(trainer, optimizer, settings, per_epoch)
    if resume and (folder / CHECKPOINT).exists():
        _restore(run, folder / CHECKPOINT, key)
    with stop_flag() as stopped:
        program.train()
        while not run.over:
            _epoch(run, batches, validation, folder, key, stopped, on_step, watch)
    run.go_back_to_best()
    trainer.finish(batches.inputs(), stopped_early=settings.early_stop is not None)
    program.eval()
    times = watch.times(_step, trainer, settings, task) if timed else None
    surgery.move(program, torch.device("cpu"))
    counts = {"steps": trainer.steps, "samples": trainer.steps * settings.batch_size, **trainer.counts}
    schedule = {"total_steps": trainer.total_steps, **trainer.schedule, "rounds": counts["rounds"]}
    return Trained(run.history, counts, trainer.coverage, schedule, trainer.forms, trainer.savings, times)


def _epoch(
    run: RunState,
    batches: Batches,
    validation: Samples,
    folder: Path,
    key: str,
    stopped: Callable[[], bool],
    on_step: Progress | None,
    watch: Stopwatch,
) -> None:
    """Train to the end of the epoch.

    Raises:
        Interrupted: After SIGINT or SIGTERM.
    """
    trainer, rounds, density = run.trainer, -1, 1.0
    for batch in batches.epoch(trainer.steps):
        loss, hits = watch.timed(_step, trainer, batch, run.settings)
        run.take(loss, hits)
        if on_step:
            if trainer.counts["rounds"] != rounds:
                rounds, density = trainer.counts["rounds"], trainer.density
            share = {} if hits is None else {"accuracy": hits / rows_of(batch.target)}
            on_step({"step": trainer.steps, "total": trainer.total_steps, "loss": loss, **share, "density": density})
        if run.between_epochs:
            run.end_epoch(validation, decides=hits is not None)
        stop = stopped()
        if stop or run.between_epochs or trainer.steps % run.settings.checkpoint_every == 0:
            _save(run, folder, key)
        if stop:
            raise Interrupted(
                f"stopped after step {trainer.steps} of {trainer.total_steps}; everything is in {folder}."
            )


def _save(run: RunState, folder: Path, key: str) -> None:
    save_checkpoint(folder / CHECKPOINT, {"key": key, **run.state_dict()})
    write_atomically(folder / "history.jsonl", "".join(strict_json(row) + "\n" for row in run.history).encode())


def _restore(run: RunState, checkpoint: Path, key: str) -> None:
    """Continue from a checkpoint.

    Raises:
        CheckpointError: If it belongs to another run, is damaged, or does not fit.
    """
    content = load_checkpoint(checkpoint)
    if content.get("key") != key:
        raise CheckpointError(
            f"{checkpoint} belongs to another recipe or other data. Use another --out, or --overwrite."
        )
    with fitting(checkpoint):
        check_content(
            content,
            program=run.program.state_dict(),
            parameters=dict(run.program.named_parameters()),
            optimizer=run.optimizer,
            # The saved run may have had other compact weights than a fresh one.
            trainer={**run.trainer.state_dict(), "compact": ABSENT["compact"]},
            total=run.trainer.total_steps,
        )
        run.load_state_dict(content)


def _answering(teacher: Program, device: torch.device, reads: str) -> Teacher:
    """Return a function that runs a copy of the program and selects what the task reads."""
    copy = teacher.clone().eval()
    surgery.move(copy, device)
    return lambda x: outputs_of(copy, x)[reads]


def _step(trainer: SparseTrainer, batch: Batch, settings: Settings) -> tuple[float, float | None]:
    """Make a step; returns the loss of the batch and how many samples were decided right (fractions if a sample has several decisions)."""
    closure = loss_of(trainer, batch, settings)
    loss = closure()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} on step {trainer.steps + 1}. Lower lr, add warmup, or set clip-gradient-norm; "
            f"check the data for NaN."
        )
    loss.backward()
    trainer.correct(closure)
    if settings.clip_gradient_norm is not None:
        nn.utils.clip_grad_norm_(trainer.program.parameters(), settings.clip_gradient_norm)
    trainer.step(closure)
    trainer.optimizer.zero_grad()
    return value, _hits(trainer.task, closure.output, closure.target)


def _hits(task: Task, output: Tree, target: Tree | MixedTarget) -> float | None:
    """Return how many samples of a batch were decided right, with each label of a mixed sample counted by its share; None if none is."""
    size = rows_of(own_target(target))

    def hits(one: Tree) -> float:
        right = task.right(output, one)
        if right is None:
            return math.nan
        return right[0] if right[1] == size else right[0] / max(right[1], 1) * size

    found = weighed(hits, target)
    return None if math.isnan(found) else found


def loss_of(trainer: SparseTrainer, batch: Batch, settings: Settings) -> BatchLoss:
    """Make the loss of a method on a batch; samples are mixed and inputs attacked if the method says so."""
    (x, y), method, bf16 = trainer.prepare(*batch), trainer.method, settings.precision == "bf16"
    inputs = attacked(method, trainer.program, trainer.task, x, y, trainer.counts, bf16=bf16) if method.attack else x
    criterion = functools.partial(trainer.loss, label_smoothing=settings.label_smoothing)
    return BatchLoss(trainer.program, criterion, inputs, y, reads=trainer.task.output, bf16=bf16)


@contextmanager
def stop_flag() -> Generator[Callable[[], bool]]:
    """Yield a function that returns True after SIGINT or SIGTERM; the previous handlers are restored."""
    asked: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(number)

    try:
        previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are the caller's business
        previous = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
