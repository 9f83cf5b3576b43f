"""Runs a program over samples and keeps what heads read of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from sparsify.heads import HeldOut
from sparsify.heads.base import FEATURES, OUTPUT
from sparsify.ir import Program
from sparsify.ir.evaluation import outputs_over
from sparsify.ir.features import classifier_of, with_features
from sparsify.parts.samples import Changed, Samples
from sparsify.tasks import Task


def held_out(
    program: Program, samples: Samples, task: Task, reads: Collection[str], *, level: float = 0.9, batch_size: int = 256
) -> HeldOut:
    """Compute what heads read of samples, in one evaluation.

    Args:
        program: in any mode; it does not change.
        samples: with inputs for the program.
        task: a task that reads one output.
        reads: what the heads read (`sparsify.heads.Head.reads`).
        level: as for `HeldOut`.
        batch_size: samples per forward pass.

    Raises:
        PassError: If features are read and the program has none.
    """
    main = str(task.output)
    view, name = with_features(program) if FEATURES in reads else (program, FEATURES)
    names = {main, *(name if read == FEATURES else read for read in reads if read != OUTPUT)}

    def computed(some: Samples) -> dict[str, Tensor]:
        found = outputs_over(view, some, names=names, batch_size=batch_size)
        return {FEATURES if key == name else key: value.double() for key, value in found.items()}

    def again(change: Any) -> Tensor:
        return computed(Changed(samples, lambda inputs, rows: change(inputs), "for a head"))[main]

    outputs = computed(samples)
    layer = classifier_of(view) if FEATURES in reads else None
    classifier = (layer.weight.double().cpu(), layer.bias.double().cpu()) if layer else None
    output = outputs.pop(main)
    return HeldOut(output, samples.targets.cpu(), task, level, others=outputs, classifier=classifier, again=again)
