"""Rows of ``history.jsonl``: what is told of a run after each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.ir import Program
from sparsify.parts.compute import evaluations
from sparsify.parts.samples import Samples
from sparsify.training.state import SparseTrainer

BATCH = 256
"""Samples of a forward pass over the validation part."""


def epoch_row(
    trainer: SparseTrainer, means: Mapping[str, float], validation: Samples, grown: Mapping[str, int]
) -> dict[str, Any]:
    """What is known after an epoch.

    Args:
        trainer: of a program in train mode, which is run in eval mode over the validation part.
        means: loss and accuracy over the epoch's training batches.
        validation: labelled samples.
        grown: what rounds had activated at the row before, by weight.

    Returns:
        step, loss, accuracy, val_loss, val_accuracy (a sample whose logits hold NaN or infinity is wrong); the mean over validation
        samples of what each head gives a sample (``val_ood_score``); density, lr; evaluations so far
        (`sparsify.parts.compute.evaluations`); ``readings`` where the method has figures of its own; and by masked weight ``coverage``,
        the share of its positions that have been active so far, and ``turnover``, how many rounds activated since the row before over
        those active.
    """
    readings = trainer.readings()
    return {
        "step": trainer.steps,
        **means,
        **_validated(trainer.program, validation),
        "density": trainer.density,
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "evaluations": evaluations(trainer.counts["forwards"], trainer.counts["backwards"]),
        **({"readings": readings} if readings else {}),
        **_masks(trainer, grown),
    }


def _validated(program: Program, validation: Samples) -> dict[str, float]:
    program.eval()
    found = dict[str, list[Tensor]]()
    heads = program.output_names("eval")[program.out_specs["eval"].num_leaves :]
    with torch.no_grad():
        device = next(program.parameters()).device
        for rows in torch.arange(len(validation)).split(BATCH):
            outputs = program.outputs(validation.batch(rows)[0].to(device))
            for name in ("logits", *(head for head in heads if outputs[head].ndim == 1)):
                found.setdefault(name, []).append(outputs[name].cpu())
    program.train()
    y, logits = validation.targets, torch.cat(found.pop("logits"))
    known = ~(logits.isnan() | (logits == torch.inf)).any(1)  # argmax takes NaN for the highest score
    return {
        "val_loss": float(nn.functional.cross_entropy(logits, y)),
        "val_accuracy": float(((logits.argmax(1) == y) & known).double().mean()),
        **{f"val_{name}": float(torch.cat(values).double().mean()) for name, values in found.items()},
    }


def _masks(trainer: SparseTrainer, grown: Mapping[str, int]) -> dict[str, dict[str, float]]:
    masks = trainer.program.masks()
    if not masks:
        return {}
    active = {name: max(int(mask.count_nonzero()), 1) for name, mask in masks.items()}
    turnover = {name: (count - grown.get(name, 0)) / active[name] for name, count in trainer.grown.items()}
    return {"coverage": trainer.coverage, "turnover": turnover}
