"""Measures the individual calibration of a classifier with a bounded number of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import PassError
from sparsify.figures.individual import individual_calibration
from sparsify.heads import run
from sparsify.heads.base import OUTPUT
from sparsify.ir import Program, classifier_of, features_over
from sparsify.ir.heads import main_head
from sparsify.parts.individual import stratified
from sparsify.parts.jackknife import affordable, centres, jackknife, softmax
from sparsify.parts.samples import Samples, Subset
from sparsify.tasks import Classification

INFLUENCES, MEASURED = 256, 2000
"""Held-out samples that the intervals come from, and test samples that are compared with theirs, at most."""
MOST_PARAMETERS = 10**7
"""Largest number of leave-one-out parameters, of all held-out samples together."""


def individual_row(program: Program, held_out: Samples, test: Samples, logits: Tensor) -> dict[str, Any]:
    """Measure the individual calibration of a classifier as trained, and after its calibration head.

    After the head, confidences and intervals are both of the probabilities that the head makes of the logits of each leave-one-out model.

    Both kinds of samples are drawn with the shares of all classes, at most `INFLUENCES` and `MEASURED`, and fewer held-out ones where the
    last layer is large.

    Args:
        program: returns logits [N, K].
        held_out: samples that the program was not trained on, with class numbers.
        test: the N test samples.
        logits: [N, K] of the program for ``test``.

    Returns:
        ``influences``, the number of held-out samples, with what `sparsify.figures.individual.individual_calibration` returns; the same
        figures under ``after``, if there is a head that makes probabilities of logits only; or a ``reason``.
    """
    try:
        layer = classifier_of(program)
        classes, width = layer.weight.shape
        most = min(INFLUENCES, len(held_out), MOST_PARAMETERS // (classes * (width + 1)))
        allowed = affordable(width, classes)
        if (most := most if allowed is None else min(most, allowed)) < 2:
            return {
                "reason": f"intervals need 2 held-out samples; there are {len(held_out)}, and a last layer of {classes * (width + 1):,} "
                f"parameters allows {most}"
            }
        rows, some = (
            stratified(samples.targets, count, torch.Generator().manual_seed(0))
            for samples, count in ((held_out, most), (test, min(MEASURED, len(test))))
        )
        given, targets = features_over(program, Subset(held_out, rows)), held_out.targets[rows]
        features = features_over(program, Subset(test, some))
    except PassError as error:
        return {"reason": str(error)}

    def figures(link: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        pieces = jackknife(given, targets, layer.weight, layer.bias, link=link)
        p = link(logits[some].detach().double())
        centre = centres(pieces, features, p.argmax(1), layer.weight, layer.bias, link=link)
        return individual_calibration(p, centre, test.targets[some])

    head = _head(program)
    return {"influences": most, **figures(softmax), **({"after": figures(head)} if head else {})}


def _head(program: Program) -> Callable[[Tensor], Tensor] | None:
    """Return what makes calibrated probabilities of logits [M, K]; None if no head does, or it reads something else as well."""
    found = main_head(program)
    head = None if found is None else found.head
    if (
        found is None
        or head is None
        or head.reads != (OUTPUT,)
        or "probabilities" not in {*head.outputs} - {*head.beside}
    ):
        return None
    state = {name: program.tensor(found.prefix + name).detach().double().cpu() for name in head.buffers}
    place, task = head.outputs.index("probabilities"), program.task or Classification()
    return lambda logits: head.apply(run, logits, state, task)[place]
