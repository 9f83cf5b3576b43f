"""Measures the individual calibration of a classifier with a bounded number of samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsify.errors import PassError
from sparsify.figures.individual import individual_calibration
from sparsify.ir import Program, classifier_of, features_over
from sparsify.parts.individual import stratified
from sparsify.parts.jackknife import affordable, centres, jackknife
from sparsify.parts.samples import Samples, Subset

INFLUENCES, MEASURED = 256, 2000
"""Held-out samples that the intervals come from, and test samples that are compared with theirs, at most."""
MOST_PARAMETERS = 10**7
"""Largest number of leave-one-out parameters, of all held-out samples together."""


def individual_row(program: Program, held_out: Samples, test: Samples, logits: Tensor) -> dict[str, Any]:
    """Measure the individual calibration of a classifier as trained, before its calibration head.

    Both kinds of samples are drawn with the shares of all classes, at most `INFLUENCES` and `MEASURED`, and fewer held-out ones where the
    last layer is large.

    Args:
        program: returns logits [N, K].
        held_out: samples that the program was not trained on, with class numbers.
        test: the N test samples.
        logits: [N, K] of the program for ``test``.

    Returns:
        ``influences``, the number of held-out samples, with what `sparsify.figures.individual.individual_calibration` returns; or a
        ``reason``.
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
        pieces = jackknife(
            features_over(program, Subset(held_out, rows)), held_out.targets[rows], layer.weight, layer.bias
        )
        p = logits[some].detach().double().softmax(1)
        centre = centres(pieces, features_over(program, Subset(test, some)), p.argmax(1), layer.weight, layer.bias)
    except PassError as error:
        return {"reason": str(error)}
    return {"influences": most, **individual_calibration(p, centre, test.targets[some])}
