"""Pruning-identified exemplars: the samples that sparse models answer otherwise than dense ones; numpy arrays in.

One pair of models shows which samples changed, but not why: another seed changes answers as well. Populations of seeds tell more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsify.figures.damage import Answers, benjamini_hochberg, lost_samples

Floats = NDArray[np.float64]


def most_fallen(
    dense: Answers, sparse: Answers, labels: Answers, fall: Floats, most: int
) -> tuple[NDArray[np.int64], int]:
    """Choose the samples to look at among those that the dense model has right and the sparse model wrong.

    Args:
        dense: answers of the dense model, [N].
        sparse: answers of the sparse model, [N].
        labels: [N].
        fall: [N], by how much the probability of the label fell.
        most: largest number of samples.

    Returns:
        Their numbers, the largest fall first, then the lowest number; and how many such samples there are.
    """
    lost = np.flatnonzero(lost_samples(dense, sparse, labels))
    order = np.argsort(-fall[lost], kind="stable")
    return lost[order][:most], len(lost)


def modal_answers(answers: Answers, confidence: Floats | None = None) -> Answers:
    """Return the most frequent answer of several models to each sample.

    Args:
        answers: [S, N], of S models.
        confidence: [S, N], the probability of each answer. Among equally frequent answers, the one with the larger sum of confidences
            counts, and then the lowest class; None: the lowest class.

    Returns:
        [N].
    """
    models, samples = answers.shape
    votes, sums = (np.zeros((samples, int(answers.max()) + 1)) for _ in range(2))
    every = np.arange(samples)
    for model in range(models):
        votes[every, answers[model]] += 1
        if confidence is not None:
            sums[every, answers[model]] += confidence[model]
    return np.where(votes == votes.max(1, keepdims=True), sums, -1.0).argmax(1)


@dataclass(frozen=True)
class Exemplars:
    """Pruning-identified exemplars (PIEs) between populations of seeds; see `exemplars`.

    Attributes:
        seeds: S, the number of models of each population.
        identified: bool [N], the samples whose modal answers differ.
        rate: their share.
        dense_accuracy, sparse_accuracy: mean accuracy of the models of each population on them; None if there are none.
        of_each: h = S // 2, how many seeds a population has in the comparison with chance; 0 with one seed.
        between: mean share of samples whose modal answers differ between h dense models and h sparse ones of other seeds.
        floor: the same between h dense models and h dense models of other seeds. What exceeds it is not chance of the seed.
    """

    seeds: int
    identified: NDArray[np.bool_]
    rate: float
    dense_accuracy: float | None
    sparse_accuracy: float | None
    of_each: int
    between: float | None
    floor: float | None


def exemplars(
    dense: Answers,
    sparse: Answers,
    labels: Answers,
    *,
    dense_confidence: Floats | None = None,
    sparse_confidence: Floats | None = None,
) -> Exemplars:
    """Find the samples that a population of sparse models answers differently (PIEs: Hooker et al. 2019, arXiv:1911.05248).

    A population of other seeds differs from a population by chance as well. To tell how much, the seeds are divided into two groups of
    S // 2 in S ways (in a circle): ``between`` compares the dense models of one group with the sparse models of the other, ``floor`` with
    the dense models of the other. Both use as many models, and no seed on both sides.

    Args:
        dense: answers of S dense models, [S, N].
        sparse: answers of S sparse models in the same order of seeds, [S, N].
        labels: [N].
        dense_confidence: [S, N], to decide ties; see `modal_answers`.
        sparse_confidence: [S, N], likewise.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if dense.shape != sparse.shape or dense.ndim != 2 or dense.shape[1:] != labels.shape:
        raise ValueError(f"expected [S, N] twice and [N], found {dense.shape}, {sparse.shape} and {labels.shape}")
    seeds, half = len(dense), len(dense) // 2

    def modal(answers: Answers, confidence: Floats | None, which: list[int]) -> Answers:
        return modal_answers(answers[which], None if confidence is None else confidence[which])

    everything = list(range(seeds))
    differs = modal(dense, dense_confidence, everything) != modal(sparse, sparse_confidence, everything)
    between, floor = list[float](), list[float]()
    for start in range(seeds if half else 0):
        one, other = ([(start + shift + place) % seeds for place in range(half)] for shift in (0, half))
        base = modal(dense, dense_confidence, one)
        between.append(float((base != modal(sparse, sparse_confidence, other)).mean()))
        floor.append(float((base != modal(dense, dense_confidence, other)).mean()))
    judged = ((dense == labels)[:, differs], (sparse == labels)[:, differs])
    accuracies = [float(right.mean()) if right.size else None for right in judged]
    means = [float(np.mean(shares)) if shares else None for shares in (between, floor)]
    return Exemplars(seeds, differs, float(differs.mean()), accuracies[0], accuracies[1], half, means[0], means[1])


@dataclass(frozen=True)
class ClassShift:
    """The shift of a class between populations of seeds: ``shift`` of its recall beyond that of accuracy, and the adjusted p-value.

    ``p`` is None if the recall varies over the seeds of neither population, so that a test has no scale.
    """

    shift: float
    p: float | None


def class_shifts(dense: Answers, sparse: Answers, labels: Answers, classes: int) -> tuple[ClassShift | None, ...]:
    """Test for each class whether its recall changed by another amount than accuracy, over seeds (Hooker et al. 2019).

    The mean change of accuracy is added to the recalls of the dense models, which are then compared with those of the sparse models by
    Welch's two-sided t-test; p-values are adjusted by `benjamini_hochberg`.

    Args:
        dense: [S, N], S >= 2.
        sparse: [T, N], T >= 2.
        labels: [N].
        classes: K.

    Returns:
        K entries; None for a class without samples.
    """
    change = float((sparse == labels).mean() - (dense == labels).mean())
    found: list[ClassShift | None] = [None] * classes
    tested = dict[int, tuple[float, float]]()
    for k in np.unique(labels).tolist():
        before, after = ((answers[:, labels == k] == k).mean(1) for answers in (dense, sparse))
        shift, p = float(after.mean() - before.mean()) - change, welch(before + change, after)
        found[k] = ClassShift(shift, None)
        if p is not None:
            tested[k] = shift, p
    for (k, (shift, _)), p in zip(tested.items(), benjamini_hochberg([p for _, p in tested.values()]), strict=True):
        found[k] = ClassShift(shift, p)
    return tuple(found)


def welch(first: Floats, second: Floats) -> float | None:
    """Compute the two-sided p-value of Welch's t-test for equal means (Welch 1947); None if neither [S] nor [T] varies."""
    from scipy.special import stdtr  # the distribution function of Student's t; scipy.stats takes longer to load

    parts = [float(values.var(ddof=1)) / len(values) for values in (first, second)]
    if not sum(parts) > 1e-24:
        return None
    freedom = sum(parts) ** 2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (first, second), strict=True))
    t = float(first.mean() - second.mean()) / math.sqrt(sum(parts))
    return 2 * float(stdtr(freedom, -abs(t)))
