"""Finds out on a copy what would fail when training begins."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsify.ir import Program
from sparsify.methods import Method
from sparsify.tasks import Task
from sparsify.training.attaching import attach
from sparsify.training.plan import check_warmup, steps_per_epoch
from sparsify.training.settings import Settings, build_optimizer


def rehearse(
    method: Method, program: Program, samples: int, settings: Settings, *, task: str | Task | None = None
) -> Program:
    """Attach a method to a copy of a program, as `train` will, and take no step.

    Args:
        method: the method to attach.
        program: of stage TRACED; it does not change.
        samples: number of training samples.
        settings: settings of the run.
        task: what the outputs mean, as for `attach`.

    Returns:
        The copy, with masks and the heads of the method.

    Raises:
        TaskError: If there is no task of that name.
        TrainingError: If the method is made for other tasks, or a setting cannot be met, e.g. the
            device is missing, there are fewer samples than a batch, or the warm-up is not shorter than the run.
        PatternError: If the pattern does not fit a weight.
        AllocationError: If the density cannot be met.
        RecipeError: If an option of the method does not fit the length of the run.
    """

    def no_samples() -> tuple[Tensor, Tensor]:
        raise AssertionError("a rehearsal takes no step")

    per_epoch = steps_per_epoch(
        method, samples, batch_size=settings.batch_size, early_stop=settings.early_stop, device=settings.device
    )
    total = per_epoch * settings.epochs
    check_warmup(settings.warmup, total)
    copy = program.clone().train()
    attach(
        method,
        copy,
        build_optimizer(copy, settings),
        total_steps=total,
        seed=settings.seed,
        epoch_steps=per_epoch,
        sweep=lambda: iter(()),
        calibration=no_samples if method.individual else None,
        teacher=torch.zeros_like if method.distillation else None,
        task=task,
        compact="never",  # the copy is only looked at
    )
    return copy.eval()
