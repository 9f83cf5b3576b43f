"""The loop `sparsify run` uses, on top of `SparseTrainer`. A run is a function of program, data, settings and seed."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsify.errors import CheckpointError, TrainingError
from sparsify.ir import Program
from sparsify.ir.serialization import write_atomically
from sparsify.methods import Method
from sparsify.parts.samples import Samples
from sparsify.training.checkpoint import load_checkpoint, save_checkpoint
from sparsify.training.state import SparseTrainer, attach


@dataclass(frozen=True)
class Settings:
    """How to train. Learning rates decay to 0 along half a cosine, after a linear warm-up.

    Attributes:
        epochs, batch_size: the last, smaller batch of an epoch is dropped.
        optimizer: SGD with momentum, or AdamW.
        lr, momentum, weight_decay: decay is not applied to biases and norm parameters.
        schedule: of the learning rate.
        warmup: steps.
        label_smoothing: in [0, 1).
        clip_gradient_norm: None leaves gradients as they are.
        augment: ``crop-flip`` pads by 4, crops at random and flips half of the images.
        seed: of data order, masks and growth.
        checkpoint_every: steps; each epoch's end too.
    """

    epochs: int
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step", "one-cycle", "constant"] = "cosine"
    warmup: int = 0
    label_smoothing: float = 0.0
    clip_gradient_norm: float | None = None
    augment: Literal["none", "crop-flip"] = "none"
    seed: int = 0
    checkpoint_every: int = 200


@dataclass(frozen=True)
class Trained:
    """What training leaves beside the program.

    Attributes:
        history: one row an epoch: step, loss, accuracy, val_loss, val_accuracy, density, lr.
        counts: steps, samples, rounds (topology updates), skipped_rounds, probes (extra forward and backward passes).
    """

    history: list[dict[str, Any]]
    counts: dict[str, int]


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
    resume: bool = False,
    on_step: Progress | None = None,
) -> Trained:
    """Train ``program`` in place; ``checkpoint.pt`` and ``history.jsonl`` are kept in ``folder``.

    Args:
        method: what makes it sparse.
        program: of stage TRACED.
        data: labelled samples (`sparsify.parts.samples.TensorSamples` for tensors).
        validation: measured after each epoch; nothing is chosen by it.
        settings: see `Settings`.
        folder: of the run; made if missing.
        key: identifies recipe and data; a checkpoint of another key is refused.
        resume: go on from the checkpoint, to the same bits as an uninterrupted run.
        on_step: called after each step with step, total, loss, accuracy, density.

    Raises:
        TrainingError: If the loss is not finite, or there are fewer samples than a batch.
        CheckpointError: If the checkpoint cannot be used.
        Interrupted: After SIGINT or SIGTERM.
    """
    per_epoch = len(data) // settings.batch_size
    if per_epoch == 0:
        raise TrainingError(
            f"{len(data)} training samples do not fill a batch of {settings.batch_size}. Lower batch-size."
        )
    total = per_epoch * settings.epochs
    torch.manual_seed(settings.seed)
    optimizer = build_optimizer(program, settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, total, settings))
    trainer = attach(method, program, optimizer, total_steps=total, seed=settings.seed)
    history: list[dict[str, Any]] = []
    sums = [0.0, 0.0]
    checkpoint = folder / "checkpoint.pt"

    def save() -> None:
        content = {
            "key": key,
            "program": program.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.last_epoch,
            "trainer": trainer.state_dict(),
            "rng": torch.random.get_rng_state(),
            "history": history,
            "sums": sums,
        }
        save_checkpoint(checkpoint, content)
        write_atomically(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history).encode())

    if resume and checkpoint.exists():
        content = load_checkpoint(checkpoint)
        if content["key"] != key:
            raise CheckpointError(
                f"{checkpoint} belongs to another recipe or other data. Use another --out, or --overwrite."
            )
        program.load_state_dict(content["program"])
        optimizer.load_state_dict(content["optimizer"])
        trainer.load_state_dict(content["trainer"])
        scheduler.last_epoch = int(content["scheduler"])
        history, sums = content["history"], content["sums"]
        for group, lr in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = lr * lr_factor(scheduler.last_epoch, total, settings)
        torch.random.set_rng_state(content["rng"])

    with _stop_flag() as stopped:
        program.train()
        while trainer.steps < total:
            epoch, index = divmod(trainer.steps, per_epoch)
            order = torch.randperm(
                len(data), generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
            )
            for start in range(index, per_epoch):
                rows = order[start * settings.batch_size : (start + 1) * settings.batch_size]
                x, y = data.batch(rows, seed=settings.seed * 1_000_003 + trainer.steps)
                loss, hits = _step(program, trainer, optimizer, augmented(x, settings), y, settings)
                scheduler.step()
                sums = [sums[0] + loss, sums[1] + hits]
                if on_step:
                    on_step({"step": trainer.steps, "total": total, "loss": loss, "accuracy": hits / len(rows)})
                if start + 1 == per_epoch:
                    history.append(_row(program, trainer.steps, sums, per_epoch, validation, optimizer, settings))
                    sums = [0.0, 0.0]
                if start + 1 == per_epoch or trainer.steps % settings.checkpoint_every == 0 or stopped():
                    save()
                if stopped():
                    raise Interrupted(f"stopped after step {trainer.steps} of {total}; everything is in {folder}.")
    program.eval()
    counts = {"steps": trainer.steps, "samples": trainer.steps * settings.batch_size, **trainer.counts}
    return Trained(history, counts)


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
        case "step":
            return 0.1 ** sum(progress >= milestone for milestone in (0.5, 0.75))
        case "one-cycle":
            return 0.04 + 0.96 * (progress / 0.3 if progress < 0.3 else max(1 - progress, 0.0) / 0.7)
        case "constant":
            return 1.0


def augmented(x: Tensor, settings: Settings) -> Tensor:
    """A batch of images [N, C, H, W] as the settings ask, drawn from the global RNG."""
    if settings.augment == "none":
        return x
    n, _, h, w = x.shape
    padded = nn.functional.pad(x, (4, 4, 4, 4))
    top, left = torch.randint(9, (n,)), torch.randint(9, (n,))
    rows = (top[:, None] + torch.arange(h))[:, None, :, None]
    columns = (left[:, None] + torch.arange(w))[:, None, None, :]
    cropped = padded[torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None], rows, columns]
    return torch.where((torch.rand(n) < 0.5)[:, None, None, None], cropped.flip(3), cropped)


def _step(
    program: Program, trainer: SparseTrainer, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, settings: Settings
) -> tuple[float, int]:
    output = program(x)
    logits, objective = program.logits(output), trainer.method.objective
    if objective is None:
        loss = nn.functional.cross_entropy(logits, y, label_smoothing=settings.label_smoothing)
    else:
        loss = objective(output, y)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} on step {trainer.steps + 1}. Lower lr, add warmup, or set clip-gradient-norm; "
            f"check the data for NaN."
        )
    loss.backward()
    if settings.clip_gradient_norm is not None:
        nn.utils.clip_grad_norm_(program.parameters(), settings.clip_gradient_norm)
    trainer.step()
    optimizer.zero_grad()
    return value, int((logits.detach().argmax(1) == y).sum())


def _row(
    program: Program,
    step: int,
    sums: list[float],
    per_epoch: int,
    validation: Samples,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
) -> dict[str, Any]:
    program.eval()
    with torch.no_grad():
        rows = torch.arange(len(validation)).split(256)
        logits = torch.cat([program.logits(program(validation.batch(some)[0])) for some in rows])
    program.train()
    y = validation.labels
    return {
        "step": step,
        "loss": sums[0] / per_epoch,
        "accuracy": sums[1] / (per_epoch * settings.batch_size),
        "val_loss": float(nn.functional.cross_entropy(logits, y)),
        "val_accuracy": float((logits.argmax(1) == y).double().mean()),
        "density": program.costs().density,
        "lr": optimizer.param_groups[0]["lr"],
    }


@contextmanager
def _stop_flag() -> Generator[Callable[[], bool]]:
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
