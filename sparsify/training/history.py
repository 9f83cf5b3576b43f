"""Rows of ``history.jsonl``: what a run records after each epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from sparsify.ir.evaluation import outputs_over
from sparsify.parts.compute import evaluations
from sparsify.parts.samples import Samples
from sparsify.training.state import SparseTrainer

BATCH = 256
"""Samples per forward pass over the validation part."""


def epoch_row(
    trainer: SparseTrainer, means: Mapping[str, float], validation: Samples, grown: Mapping[str, int]
) -> dict[str, Any]:
    """Make the row of an epoch.

    Args:
        trainer: its program is in train mode; it runs in eval mode over the validation part.
        means: means over the epoch's training batches: the loss, and the accuracy if the task makes decisions.
        validation: validation samples with their targets.
        grown: by weight, the number of positions that rounds had activated by the previous row.

    Returns:
        step, loss (what training minimised), accuracy, val_loss (the loss of the task, without smoothing, the term of a teacher, or the
        method's own loss), and the figures of the task that the samples define (``val_accuracy`` ...; a decision from NaN or
        infinity counts as wrong); the means over validation samples of the outputs of heads (``val_ood_score``); density, lr; evaluations
        so far (`sparsify.parts.compute.evaluations`); ``readings`` if the method has figures of its own; and by masked weight
        ``coverage``, the share of its positions that have ever been active, and ``turnover``, the positions that rounds activated since
        the previous row divided by the active ones.
    """
    readings = trainer.readings()
    return {
        "step": trainer.steps,
        **means,
        **_validated(trainer, validation),
        "density": trainer.density,
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "evaluations": evaluations(trainer.counts["forwards"], trainer.counts["backwards"]),
        **({"readings": readings} if readings else {}),
        **_masks(trainer, grown),
    }


def _validated(trainer: SparseTrainer, validation: Samples) -> dict[str, float]:
    program, task = trainer.program.eval(), trainer.task
    heads = program.output_names("eval")[program.out_specs["eval"].num_leaves :]
    kept = None if task.trained_on is None or task.output is None else {task.trained_on, task.output, *heads}
    found = outputs_over(program, validation, names=kept, batch_size=BATCH)
    program.train()
    every = None if kept else program.reading(None, "eval", list(found.values()))
    judged, output = (every if name is None else found[name] for name in (task.trained_on, task.output))
    with torch.no_grad():
        loss, figures = float(task.loss(judged, validation.targets)), task.figures(output, validation.targets)
    return {
        "val_loss": loss,
        **{f"val_{name}": value for name, value in figures.items() if math.isfinite(value)},
        **{f"val_{name}": float(found[name].double().mean()) for name in heads if found[name].ndim == 1},
    }


def _masks(trainer: SparseTrainer, grown: Mapping[str, int]) -> dict[str, dict[str, float]]:
    masks = trainer.program.masks()
    if not masks:
        return {}
    active = {name: max(int(mask.count_nonzero()), 1) for name, mask in masks.items()}
    turnover = {name: (count - grown.get(name, 0)) / active[name] for name, count in trainer.grown.items()}
    return {"coverage": trainer.coverage, "turnover": turnover}
