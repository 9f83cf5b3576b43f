"""The loop `sparsify run` uses, on top of `SparseTrainer`. A run is a function of program, data, settings and seed."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsify.errors import CheckpointError, TrainingError
from sparsify.files import write_atomically
from sparsify.ir import Program, surgery
from sparsify.ir.evaluation import outputs_of
from sparsify.methods import Method
from sparsify.parts.samples import Samples
from sparsify.parts.trees import Tree, moved, rows_of
from sparsify.tasks import Task
from sparsify.training.attaching import attach
from sparsify.training.batch_loss import BatchLoss
from sparsify.training.checkpoint import load_checkpoint, save_checkpoint
from sparsify.training.fetching import fetch
from sparsify.training.history import epoch_row
from sparsify.training.plan import find_device, steps_per_epoch
from sparsify.training.probe import Closure
from sparsify.training.resumption import check_content, fitting
from sparsify.training.state import SparseTrainer
from sparsify.training.teaching import Teacher

REESTIMATED = 100
"""Batches from which batch-norm statistics are taken again after weights were averaged."""
SWEEP = 2**40
"""Added to the seed of orders that a method's sweeps over the training data draw."""


@dataclass(frozen=True)
class Settings:
    """How to train. The learning rate decays by a schedule, after a linear warm-up.

    Attributes:
        epochs, batch_size: the last, smaller batch of an epoch is dropped.
        optimizer: SGD with momentum, or AdamW.
        lr, momentum, weight_decay: decay is not applied to biases and norm parameters.
        schedule: of the learning rate. ``cosine-tail`` falls to a tenth over the first 0.8 of the run and stays there, which leaves
            weights to average (Izmailov et al. 2018, arXiv:1803.05407).
        warmup: steps.
        label_smoothing: in [0, 1).
        clip_gradient_norm: None leaves gradients as they are.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...; ``auto`` is CUDA where there is one.
        precision: ``bf16`` runs the forward pass in mixed precision (bfloat16 where it is safe); parameters stay float32.
        early_stop: stop after this many epochs without a lower validation loss, counted once the final density is reached, and
            go back to the best epoch; None: never.
        seed: of data order, masks and growth.
        checkpoint_every: steps; each epoch's end too.
        workers: processes that fetch batches ahead; 0 fetches in this one. The bits do not depend on it.
    """

    epochs: int
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "cosine-tail", "step", "one-cycle", "constant"] = "cosine"
    warmup: int = 0
    label_smoothing: float = 0.0
    clip_gradient_norm: float | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    early_stop: int | None = None
    seed: int = 0
    checkpoint_every: int = 200
    workers: int = 0


@dataclass(frozen=True)
class Trained:
    """What training leaves beside the program.

    Attributes:
        history: one row an epoch, see `sparsify.training.history`.
        counts: steps, samples, and what `SparseTrainer` counts.
        coverage: of each masked weight at the end.
        schedule: what `SparseTrainer.schedule` holds, the steps of the run (``total_steps``) and the rounds that were made (``rounds``).
    """

    history: list[dict[str, Any]]
    counts: dict[str, int]
    coverage: dict[str, float]
    schedule: dict[str, int]


class Interrupted(Exception):
    """The user asked to stop; the step was finished and a checkpoint written."""


Progress = Callable[[dict[str, Any]], None]


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
    on_step: Progress | None = None,
) -> Trained:
    """Train ``program`` in place; ``checkpoint.pt`` and ``history.jsonl`` are kept in ``folder``.

    Args:
        method: what makes it sparse.
        program: of stage TRACED.
        data: samples with their targets (`sparsify.parts.samples.TensorSamples` for tensors).
        validation: measured after each epoch; nothing is chosen by it.
        settings: see `Settings`.
        folder: of the run; made if missing.
        key: identifies recipe, data and teacher; a checkpoint of another key is refused.
        teacher: for methods that learn from one; left as it is.
        task: what the outputs mean, as for `attach`.
        resume: go on from the checkpoint, to the same bits as an uninterrupted run.
        on_step: called after each step with step, total, loss, accuracy where the task decides something, and density.

    Raises:
        TrainingError: If the loss is not finite, or there are fewer samples than a batch.
        CheckpointError: If the checkpoint cannot be used.
        Interrupted: After SIGINT or SIGTERM.
    """
    per_epoch = steps_per_epoch(
        method, len(data), batch_size=settings.batch_size, early_stop=settings.early_stop, device=settings.device
    )
    total = per_epoch * settings.epochs
    device = find_device(settings.device)
    surgery.move(program, device)
    torch.manual_seed(settings.seed)
    optimizer = build_optimizer(program, settings)

    def sweep() -> Iterator[Closure]:
        """Losses of an epoch of training batches in an order of its own."""
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + trainer.steps + SWEEP)
        rows = torch.randperm(len(data), generator=generator).split(settings.batch_size)[:per_epoch]
        seeds = torch.randint(2**31, (per_epoch,), generator=generator).tolist()
        for x, y in fetch(data, rows, seeds, workers=settings.workers):
            yield _loss(trainer, moved(x, device), moved(y, device), settings)

    trainer = attach(
        method,
        program,
        optimizer,
        total_steps=total,
        seed=settings.seed,
        epoch_steps=per_epoch,
        sweep=sweep,
        teacher=None if teacher is None else _answering(teacher, device),
        task=task,
    )

    def factor(step: int) -> float:
        return lr_factor(*trainer.position(step), settings)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    history: list[dict[str, Any]] = []
    maskable = program.costs().maskable
    budget = round(method.density * maskable) + len(program.masks())  # allocations round by at most one a weight
    sums, grown, best, waited = [0.0, 0.0], dict[str, int](), dict[str, Any](), 0
    checkpoint = folder / "checkpoint.pt"

    def save() -> None:
        content = {
            "key": key,
            "program": program.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.last_epoch,
            "trainer": trainer.state_dict(),
            "rng": torch.random.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "best": best,
            "waited": waited,
            "history": history,
            "sums": sums,
            "grown": grown,
        }
        save_checkpoint(checkpoint, content)
        write_atomically(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history).encode())

    if resume and checkpoint.exists():
        content = load_checkpoint(checkpoint)
        if content.get("key") != key:
            raise CheckpointError(
                f"{checkpoint} belongs to another recipe or other data. Use another --out, or --overwrite."
            )
        with fitting(checkpoint):
            check_content(
                content,
                program=program.state_dict(),
                optimizer=optimizer,
                trainer=trainer.state_dict(),
                total=total,
            )
            program.load_state_dict(content["program"])
            optimizer.load_state_dict(content["optimizer"])
            # A key is shared by runs of another length only where no schedule depends on the length.
            trainer.load_state_dict({**content["trainer"], "total_steps": total})
            program.verify()
        scheduler.last_epoch = int(content["scheduler"])
        # Or a round that replaces the optimizer's step, right after resuming, is warned of as a step left out.
        scheduler._step_count = scheduler.last_epoch + 1
        history, sums, grown = content["history"], content["sums"], content["grown"]
        best, waited = content["best"], content["waited"]
        for group, lr in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = lr * factor(scheduler.last_epoch)
        with fitting(checkpoint):
            torch.random.set_rng_state(content["rng"])
            if device.type == "cuda":
                torch.cuda.set_rng_state(content["cuda_rng"], device)

    rounds, density = trainer.counts["rounds"], trainer.density
    with stop_flag() as stopped:
        program.train()
        while trainer.steps < total and not (settings.early_stop and waited >= settings.early_stop):
            epoch, index = divmod(trainer.steps, per_epoch)
            order = torch.randperm(
                len(data), generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
            )
            left = range(index, per_epoch)
            rows = [order[start * settings.batch_size : (start + 1) * settings.batch_size] for start in left]
            seeds = [settings.seed * 1_000_003 + epoch * per_epoch + start for start in left]
            fetched = fetch(data, rows, seeds, workers=settings.workers)
            for start, (x, y) in zip(left, fetched, strict=True):
                x, y = moved(x, device), moved(y, device)
                loss, hits = _step(trainer, x, y, settings)
                scheduler.step()
                sums = [sums[0] + loss, sums[1] + (hits or 0)]
                if on_step:
                    if trainer.counts["rounds"] != rounds:
                        rounds, density = trainer.counts["rounds"], trainer.density
                    share = {} if hits is None else {"accuracy": hits / rows_of(y)}
                    on_step({"step": trainer.steps, "total": total, "loss": loss, **share, "density": density})
                if start + 1 == per_epoch:
                    means = {"loss": sums[0] / per_epoch}
                    if hits is not None:
                        means["accuracy"] = sums[1] / (per_epoch * settings.batch_size)
                    history.append(epoch_row(trainer, means, validation, grown))
                    sums, grown = [0.0, 0.0], trainer.grown
                    if settings.early_stop and program.costs().active <= budget:
                        better = not best or history[-1]["val_loss"] < best["val_loss"]
                        waited = 0 if better else waited + 1
                        if better:
                            best = {"val_loss": history[-1]["val_loss"], "program": _copied(program)}
                if start + 1 == per_epoch or trainer.steps % settings.checkpoint_every == 0 or stopped():
                    save()
                if stopped():
                    raise Interrupted(f"stopped after step {trainer.steps} of {total}; everything is in {folder}.")
    if best and waited:
        program.load_state_dict(best["program"])
    trainer.finish(_inputs(data, settings, device), stopped_early=settings.early_stop is not None)
    surgery.move(program, torch.device("cpu"))
    program.eval()
    counts = {"steps": trainer.steps, "samples": trainer.steps * settings.batch_size, **trainer.counts}
    schedule = {"total_steps": total, **trainer.schedule, "rounds": counts["rounds"]}
    return Trained(history, counts, trainer.coverage, schedule)


def _answering(teacher: Program, device: torch.device) -> Teacher:
    """The logits of a copy of the program."""
    copy = teacher.clone().eval()
    surgery.move(copy, device)
    return lambda x: outputs_of(copy, x)["logits"]


def _copied(program: Program) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in program.state_dict().items()}


def _inputs(data: Samples, settings: Settings, device: torch.device) -> Iterator[Tree]:
    """Inputs of up to `REESTIMATED` training batches, in an order drawn by the seed: data may be sorted by class."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(settings.seed))
    for index, rows in enumerate(order.split(settings.batch_size)[:REESTIMATED]):
        if len(rows) == settings.batch_size:
            yield moved(data.batch(rows, seed=settings.seed + index).inputs, device)


def build_optimizer(program: Program, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer over the program's parameters; weight decay on weights alone."""
    weights = [p for p in program.parameters() if p.ndim >= 2]
    others = [p for p in program.parameters() if p.ndim < 2]
    groups = [
        {"params": weights, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)


def lr_factor(step: int, total: int, settings: Settings) -> float:
    """The learning rate of ``step`` (from 0) over the base rate."""
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    progress = (step - settings.warmup) / max(total - settings.warmup, 1)
    match settings.schedule:
        case "cosine":
            return (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        case "cosine-tail":
            return 0.1 + 0.9 * (1 + math.cos(math.pi * min(progress / 0.8, 1.0))) / 2
        case "step":
            return 0.1 ** sum(progress >= milestone for milestone in (0.5, 0.75))
        case "one-cycle":
            return 0.04 + 0.96 * (progress / 0.3 if progress < 0.3 else max(1 - progress, 0.0) / 0.7)
        case "constant":
            return 1.0


def _step(trainer: SparseTrainer, x: Tree, y: Tree, settings: Settings) -> tuple[float, float | None]:
    """The loss of a batch, and how many of its samples are decided right; a share of them where a sample holds several decisions."""
    batch = _loss(trainer, x, y, settings)
    loss = batch()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} on step {trainer.steps + 1}. Lower lr, add warmup, or set clip-gradient-norm; "
            f"check the data for NaN."
        )
    loss.backward()
    trainer.correct(batch)
    if settings.clip_gradient_norm is not None:
        nn.utils.clip_grad_norm_(trainer.program.parameters(), settings.clip_gradient_norm)
    trainer.step(batch)
    trainer.optimizer.zero_grad()
    right = trainer.task.right(batch.output, y)
    if right is None:
        return value, None
    size = rows_of(y)
    return value, right[0] if right[1] == size else right[0] / max(right[1], 1) * size


def _loss(trainer: SparseTrainer, x: Tree, y: Tree, settings: Settings) -> BatchLoss:
    return BatchLoss(trainer, x, y, smoothing=settings.label_smoothing, bf16=settings.precision == "bf16")


@contextmanager
def stop_flag() -> Generator[Callable[[], bool]]:
    """True once SIGINT or SIGTERM has come; the handlers found are put back."""
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
