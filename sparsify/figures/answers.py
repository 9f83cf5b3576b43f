"""What classifiers answer to the same samples, as plain numbers for ``metrics.json`` and ``answers.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsify.figures.arrays import Array, ArrayLike
from sparsify.figures.damage import damage
from sparsify.figures.exemplars import most_fallen
from sparsify.figures.metrics import doubles, finite

MOST_SHOWN = 24
"""Largest number of exemplars in ``metrics.json``."""


def damage_row(
    dense: tuple[ArrayLike, ArrayLike], model: tuple[ArrayLike, ArrayLike], labels: ArrayLike, *, most: int = MOST_SHOWN
) -> dict[str, Any]:
    """Measure what a model loses beside its baseline.

    Args:
        dense: of the baseline, the scores [N, K] that its answers are the highest of, and calibrated probabilities [N, K].
        model: the same of the model; it may have further columns, such as an unknown class.
        labels: [N].
        most: largest number of exemplars.

    Returns:
        The fields of `sparsify.figures.damage.Damage`; ``lost``, the number of samples that only the baseline has right; and
        ``exemplars``, those of them whose label lost most probability.

    Raises:
        TrainingError: If a score or a probability is NaN or infinite.
    """
    truth, columns = np.asarray(labels).astype(np.int64), max(np.shape(dense[0])[1], np.shape(model[0])[1])
    before, after = (chosen(scores) for scores, _ in (dense, model))
    sure = [_picked(probabilities, truth) for _, probabilities in (dense, model)]
    fall = sure[0] - sure[1]
    samples, lost = most_fallen(before, after, truth, fall, most)
    shown = [
        {"sample": i, "label": int(truth[i]), "dense": int(before[i]), "sparse": int(after[i]), "fall": float(fall[i])}
        for i in samples.tolist()
    ]
    return {**dataclasses.asdict(damage(before, after, truth, columns)), "lost": lost, "exemplars": shown}


def answers(models: Mapping[str, tuple[ArrayLike, ArrayLike]], labels: ArrayLike) -> dict[str, Any]:
    """Return the answers of each model, and the calibrated probability of each answer, rounded to four digits.

    Args:
        models: by name, scores [N, K] and calibrated probabilities [N, K].
        labels: [N].

    Returns:
        ``labels``; ``answers`` and ``confidence`` by model.

    Raises:
        TrainingError: If a score or a probability is NaN or infinite.
    """
    given = {name: chosen(scores) for name, (scores, _) in models.items()}
    sure = {name: np.round(_picked(models[name][1], rows), 4) for name, rows in given.items()}
    return {
        "labels": np.asarray(labels).tolist(),
        "answers": {name: rows.tolist() for name, rows in given.items()},
        "confidence": {name: values.tolist() for name, values in sure.items()},
    }


def chosen(scores: ArrayLike) -> Array:
    """Return the class of the highest score of each sample, int64 [N].

    Raises:
        TrainingError: If a score is NaN or infinite.
    """
    return finite(scores, "scores", ordered=True).argmax(1)


def _picked(probabilities: ArrayLike, classes: Array) -> Array:
    return doubles(probabilities, "probabilities")[np.arange(len(classes)), classes]
