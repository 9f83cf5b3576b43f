"""A file measured on images under shift (`sparsify.reading.shifts`)."""

from __future__ import annotations

from typing import Any

from sparsify.errors import EvaluationError
from sparsify.evaluation.feeding import Feeding
from sparsify.evaluation.measures import Answered
from sparsify.evaluation.model_file import ModelFile, answers
from sparsify.evaluation.samples import Samples
from sparsify.figures.shift import shift_figures
from sparsify.pages.shifts import UNCHANGED
from sparsify.reading.shifts import KINDS, SEVERITIES, not_images, shifted


def check_shiftable(file: ModelFile, samples: Samples) -> None:
    """Refuse a file and samples that cannot be measured under shift.

    Raises:
        EvaluationError: If the file is no classifier, or the samples are no images.
    """
    if file.task != "classification":
        raise EvaluationError(
            f"--shift measures the confidence of classifiers, and {file.path} is for {file.task}. Leave it out."
        )
    if (reason := not_images(samples.inputs)) is not None:
        raise EvaluationError(
            f"--shift changes images [N, C, H, W], of bytes or of floats in [0, 1] before normalisation, but the inputs of {samples.name} "
            f"are others: {reason}. Leave it out, or give the images as they were before they were prepared."
        )


def under_shift(file: ModelFile, samples: Samples, feed: Feeding, found: Answered) -> dict[str, Any]:
    """Run a file over the samples at every kind and severity of shift; returns figures by kind, a list by severity.

    Args:
        file: of a classifier.
        samples: images.
        feed: makes its inputs.
        found: what it answers to the images as they are, whose figures are called ``unchanged``.

    Raises:
        EvaluationError: If an output is not what its role says.
    """
    report: dict[str, Any] = {UNCHANGED: shift_figures(found.tables(), found.inside, samples.targets)}
    for kind in KINDS:
        report[kind] = []
        for severity in SEVERITIES:
            given = Answered(answers(file, shifted(samples.inputs, kind, severity), feed), {})
            report[kind].append(shift_figures(given.tables(), given.inside, samples.targets))
    return report
