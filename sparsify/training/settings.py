"""The settings of a run, and the optimizer and learning rate that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from sparsify.ir import Program
from sparsify.training.compact_weights import Compact


@dataclass(frozen=True)
class Settings:
    """How to train. The learning rate decays by a schedule, after a linear warm-up.

    Attributes:
        epochs: passes over the training samples.
        batch_size: samples per step; the last, smaller batch of an epoch is dropped.
        optimizer: SGD with momentum, or AdamW.
        lr: learning rate after the warm-up, from which the schedule starts.
        momentum: momentum of SGD; AdamW does not read it.
        weight_decay: weight decay of the optimizer; biases and norm parameters are left out.
        schedule: how the learning rate falls. ``cosine-tail`` falls to a tenth over the first 0.8 of the run and stays there, which leaves
            weights to average (Izmailov et al. 2018, arXiv:1803.05407).
        warmup: steps over which the learning rate rises linearly to ``lr``, before the schedule begins; at least 0 and fewer than the run
            has.
        label_smoothing: in [0, 1).
        clip_gradient_norm: largest norm of all gradients together, above 0; None: no clipping.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...; ``auto`` is CUDA where there is one.
        precision: ``bf16`` runs the forward pass in mixed precision (bfloat16 where it is safe); parameters stay float32.
        early_stop: stop after this many epochs without a lower validation loss, counted once the final density is reached, and
            go back to the best epoch; None: never.
        seed: seed of data order, masks and growth.
        checkpoint_every: steps between checkpoints; one is also written at the end of each epoch.
        compact: which weights with grouped masks are stored compact while a run lasts: ``auto``, those for which a step is predicted to be
            faster; ``always``, all that can be; ``never``, none. The same option selects the weights whose optimizer state is compact.
        workers: number of processes that fetch batches ahead; 0 fetches in this process. Results do not depend on it.
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
    compact: Compact = "auto"
    checkpoint_every: int = 200
    workers: int = 0


def build_optimizer(program: Program, settings: Settings) -> torch.optim.Optimizer:
    """Make the optimizer over the program's parameters; only weights get weight decay."""
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
    """Return the learning rate of ``step`` (from 0) divided by the base rate."""
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
