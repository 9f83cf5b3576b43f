"""What a sparse model loses beside a dense one, over all samples and by class of the label; numpy arrays in, plain numbers out.

Answers are class numbers, int [N], of the same N samples. The dense model is the one that is compared with; it need not be dense.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsify.figures.intervals import paired_shares, share_interval

Answers = NDArray[np.int64]
Interval = tuple[float, float]
CONFIDENCE = 0.95
"""What an interval should cover, and 1 minus the false discovery rate of the classes that are called better or worse."""
UNCLEAR, WORSE, BETTER = "no clear difference", "worse", "better"


@dataclass(frozen=True)
class ClassDamage:
    """What a class loses.

    Attributes:
        samples: number of its samples, at least 1.
        dense, sparse: recall, the share of its samples that each model has right, in [0, 1].
        change: ``sparse - dense``.
        interval: of the change, at a confidence corrected for the number of classes; see `class_damages`.
        p: exact McNemar p-value, adjusted for the number of classes by `benjamini_hochberg`.
        verdict: ``worse`` or ``better`` if ``p`` is at most 0.05 and the interval excludes 0; else ``no clear difference``.
        excess_gap: the loss of recall minus the loss of accuracy over all samples; positive: the class loses more than the samples do.
        excess_interval: of the excess gap; those of all classes hold together.
        negative_flips: share of its samples that the dense model has right and the sparse model wrong, with a 95 % interval each.
    """

    samples: int
    dense: float
    sparse: float
    change: float
    interval: Interval
    p: float
    verdict: str
    excess_gap: float
    excess_interval: Interval
    negative_flips: float
    negative_flips_interval: Interval


@dataclass(frozen=True)
class Damage:
    """What all samples lose, and each class; None for a class without samples.

    Attributes:
        churn: share of the samples that the models answer differently, right or wrong (Milani Fard et al. 2016), with a 95 % interval.
        negative_flips: share of the samples that the dense model has right and the sparse model wrong (Yan et al. 2021,
            arXiv:2011.09161), with a 95 % interval.
        worst_class: the class with the largest excess gap; the lowest of several.
        max_excess_gap: its excess gap, max over c of psi_c (Hashemizadeh et al. 2024, arXiv:2310.20673). A maximum is above 0 even if
            nothing but chance differs between the models, so read it beside its interval.
        max_excess_interval: the interval of that class; it takes into account that the class was chosen as the worst.
        classes: K entries.
    """

    samples: int
    churn: float
    churn_interval: Interval
    negative_flips: float
    negative_flips_interval: Interval
    worst_class: int
    max_excess_gap: float
    max_excess_interval: Interval
    classes: tuple[ClassDamage | None, ...]


def damage(dense: Answers, sparse: Answers, labels: Answers, classes: int) -> Damage:
    """Compare the answers of a sparse model with those of a dense one on the same samples.

    Args:
        dense: the answers of the dense model, [N], N >= 1.
        sparse: those of the sparse model, [N].
        labels: [N], 0 to ``classes`` - 1.
        classes: K.

    Raises:
        ValueError: If the lengths differ or are 0.
    """
    _check(dense, sparse, labels)
    samples, changed, lost = len(labels), int((dense != sparse).sum()), int(lost_samples(dense, sparse, labels).sum())
    rows = class_damages(dense, sparse, labels, classes)
    worst = max((k for k, row in enumerate(rows) if row), key=lambda k: (_known(rows[k]).excess_gap, -k))
    return Damage(
        samples=samples,
        churn=changed / samples,
        churn_interval=share_interval(changed, samples),
        negative_flips=lost / samples,
        negative_flips_interval=share_interval(lost, samples),
        worst_class=worst,
        max_excess_gap=_known(rows[worst]).excess_gap,
        max_excess_interval=_known(rows[worst]).excess_interval,
        classes=rows,
    )


def class_damages(dense: Answers, sparse: Answers, labels: Answers, classes: int) -> tuple[ClassDamage | None, ...]:
    """Compare the recall of each class, with corrections for the number of classes.

    A class is called worse or better if its exact McNemar test is significant after `benjamini_hochberg` at a false discovery rate of 5 %,
    and its interval agrees. Intervals of the change are those of `sparsify.figures.intervals.paired_shares` at the confidence
    1 - 0.05 R / K, where R of the K classes with samples are significant, at least 1; 95 % of the intervals of the classes so called hold
    (Benjamini and Yekutieli 2005). Intervals of the excess gap have the confidence 1 - 0.05 / K, so that all of them hold together.

    Args:
        dense: as for `damage`.
        sparse: as for `damage`.
        labels: as for `damage`.
        classes: as for `damage`.

    Raises:
        ValueError: If the lengths differ or are 0.
    """
    _check(dense, sparse, labels)

    def counted(which: NDArray[np.bool_]) -> list[int]:
        return np.bincount(labels[which], minlength=classes).tolist()

    lost, gained = counted(lost_samples(dense, sparse, labels)), counted(lost_samples(sparse, dense, labels))
    samples, right = counted(np.ones_like(labels, dtype=bool)), counted(dense == labels)
    present = [k for k in range(classes) if samples[k]]
    adjusted = benjamini_hochberg([mcnemar(lost[k], gained[k]) for k in present])
    alpha = (1 - CONFIDENCE) / len(present)
    corrected = 1 - alpha * max(1, sum(p <= 1 - CONFIDENCE for p in adjusted))
    found: list[ClassDamage | None] = [None] * classes
    for k, p in zip(present, adjusted, strict=True):
        change, (low, high) = paired_shares(lost[k], gained[k], samples[k], confidence=corrected)
        clear = p <= 1 - CONFIDENCE and not low <= 0 <= high
        rest = (sum(lost) - lost[k], sum(gained) - gained[k], len(labels) - samples[k])
        gap, ends = excess_gap((lost[k], gained[k], samples[k]), rest, confidence=1 - alpha)
        found[k] = ClassDamage(
            samples=samples[k],
            dense=right[k] / samples[k],
            sparse=(right[k] - lost[k] + gained[k]) / samples[k],
            change=change,
            interval=(low, high),
            p=p,
            verdict=UNCLEAR if not clear else WORSE if high < 0 else BETTER,
            excess_gap=gap,
            excess_interval=ends,
            negative_flips=lost[k] / samples[k],
            negative_flips_interval=share_interval(lost[k], samples[k]),
        )
    return tuple(found)


def excess_gap(
    group: tuple[int, int, int], rest: tuple[int, int, int], *, confidence: float = CONFIDENCE
) -> tuple[float, Interval]:
    """Compute the excess accuracy gap of a group of samples: its loss of accuracy minus that of all samples, with an interval.

    The loss of all samples contains the group. With w the group's share of them, the gap is (1 - w) times the loss of the group minus the
    loss of the rest. Group and rest are independent, so their intervals (`sparsify.figures.intervals.paired_shares`) combine by the
    method of variance estimates recovery (Zou and Donner 2008).

    Args:
        group: numbers of its samples that only the dense model has right, that only the sparse model has right, and of all.
        rest: the same of the samples outside the group.
        confidence: probability that the interval should cover, in (0, 1).

    Returns:
        The gap, in [-1, 1], and its interval; 0 without width if there is no rest.
    """
    if not rest[2]:
        return 0.0, (0.0, 0.0)
    share = rest[2] / (group[2] + rest[2])
    (own, (own_low, own_high)), (others, (low, high)) = (
        paired_shares(gained, lost, samples, confidence=confidence) for lost, gained, samples in (group, rest)
    )
    below, above = (
        math.hypot(max(first, 0.0), max(second, 0.0))
        for first, second in ((own - own_low, high - others), (own_high - own, others - low))
    )
    gap = own - others
    return share * gap, (share * (gap - below), share * (gap + above))


def mcnemar(lost: int, gained: int) -> float:
    """Compute the two-sided p-value of the exact McNemar test (1947): are ``lost`` and ``gained`` changes equally likely?"""
    from scipy.special import bdtr  # the distribution function of the binomial; scipy.stats takes longer to load

    changes = lost + gained
    return min(1.0, 2 * float(bdtr(min(lost, gained), changes, 0.5))) if changes else 1.0


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjust p-values for their number: those at most q make up discoveries of which a share q is false on average (1995, JRSS B 57).

    Args:
        p: p-values in [0, 1], of independent or positively dependent tests.

    Returns:
        The adjusted p-values, in the same order.
    """
    order = sorted(range(len(p)), key=lambda place: p[place], reverse=True)
    found, least = [1.0] * len(p), 1.0
    for rank, place in zip(range(len(p), 0, -1), order, strict=True):
        least = min(least, p[place] * len(p) / rank)
        found[place] = least
    return found


def lost_samples(first: Answers, second: Answers, labels: Answers) -> NDArray[np.bool_]:
    """Return which samples, bool [N], ``first`` has right and ``second`` wrong."""
    return (first == labels) & (second != labels)


def _known(row: ClassDamage | None) -> ClassDamage:
    assert row is not None
    return row


def _check(dense: Answers, sparse: Answers, labels: Answers) -> None:
    if not (len(labels) and dense.shape == sparse.shape == labels.shape):
        raise ValueError(f"expected answers of the same samples, found {dense.shape}, {sparse.shape}, {labels.shape}")
