"""Split conformal prediction sets: scores of classes, and the threshold below which a class belongs to the set.

With N held-out samples that are exchangeable with new ones, the set {k : score(x, k) <= threshold} holds the right class of a new sample
with a probability of at least ``coverage``, averaged over samples (Vovk et al. 2005; Angelopoulos and Bates, arXiv:2107.07511).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsify.parts import conformal

PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)
"""Penalties per rank that `tuned` tries (Angelopoulos et al. 2021, arXiv:2009.14193, appendix)."""

LEAST_TUNING, USUAL = 20, (0.01, 1)
"""Fewest samples to choose a penalty on, and penalty and free ranks to use with fewer."""


def threshold(scores: Tensor, coverage: float) -> float:
    """Return the threshold that covers new samples: at least the ceil((N + 1) · coverage)-th smallest of the scores of the right classes.

    Every number from this score up to the next larger one gives the held-out samples the same sets; the middle is returned, so that
    rounding moves no held-out sample across it.

    Args:
        scores: of the right classes of N held-out samples, [N].
        coverage: probability that a set should hold the right class, in (0, 1).

    Returns:
        Infinity if there are fewer samples than `sparsify.parts.conformal.needed`: all classes belong to the set.

    Raises:
        ValueError: If there is no sample, or a score is NaN.

    Examples:
        >>> import torch
        >>> from sparsify.parts.prediction_sets import threshold
        >>> round(threshold(torch.tensor([0.1, 0.2, 0.3, 0.4]), 0.6), 4)  # the third of four
        0.35
    """
    if not len(scores) or bool(scores.isnan().any()):
        raise ValueError(f"expected scores of at least one sample, without NaN; found shape {list(scores.shape)}")
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    if rank > len(scores):
        return math.inf
    ordered = scores.double().sort().values
    least = float(ordered[rank - 1])
    above = ordered[ordered > least]
    return (least + float(above[0])) / 2 if len(above) else least + 1e-6


def lac_scores(probabilities: Tensor) -> Tensor:
    """Compute 1 - p_k, [N, K]: the least ambiguous classifier (Sadinle et al. 2019, arXiv:1609.00451), whose sets are smallest on average.

    Args:
        probabilities: [N, K].
    """
    return 1 - probabilities


def adaptive_scores(probabilities: Tensor, charge: Tensor | None = None) -> Tensor:
    """Compute the mass of the more probable classes and of the class itself, plus the charge of its rank, [N, K].

    Equally probable classes count as the first of them. Without a charge these are the scores of APS in their
    deterministic form (Romano et al. 2020, arXiv:2006.02544), whose sets are larger for hard samples; with the charge of `charges`, those
    of RAPS (Angelopoulos et al. 2021, arXiv:2009.14193).

    Args:
        probabilities: [N, K].
        charge: [K], by rank from the most probable class on.
    """
    ordered = probabilities.sort(dim=1, descending=True).values
    mass = ordered.cumsum(1) if charge is None else ordered.cumsum(1) + charge
    return mass.gather(1, torch.searchsorted(-ordered, -probabilities.contiguous()))


def charges(classes: int, penalty: float, free: int) -> Tensor:
    """Return penalty · max(0, rank - free) for each rank from 1 to ``classes``, float64 [K].

    Args:
        classes: number of classes, K.
        penalty: per rank, at least 0.
        free: number of ranks without a penalty, at least 0.
    """
    return penalty * (torch.arange(1, classes + 1, dtype=torch.float64) - free).clamp_min(0)


def tuned(probabilities: Tensor, answers: Tensor, coverage: float) -> tuple[float, int]:
    """Choose penalty and free ranks of RAPS on samples that are not used for the threshold.

    The free ranks are the ``coverage`` quantile of the ranks of the right classes. Of `PENALTIES`, the one with the smallest sets on one
    half of the samples, with the threshold of the other half; of equal ones, the smaller penalty.

    Args:
        probabilities: [N, K].
        answers: right classes, int64 [N].
        coverage: as for `threshold`.

    Raises:
        ValueError: If there are fewer than two samples.
    """
    if len(answers) < 2:
        raise ValueError(f"expected at least two samples to choose a penalty on, found {len(answers)}")
    ranks = (probabilities > probabilities.gather(1, answers[:, None])).sum(1) + 1
    free = int(ranks.sort().values[min(math.ceil(coverage * len(ranks)), len(ranks)) - 1])
    half, sizes = len(answers) // 2, dict[float, float]()
    for penalty in PENALTIES:
        scores = adaptive_scores(probabilities, charges(probabilities.shape[1], penalty, free))
        limit = threshold(scores[:half].gather(1, answers[:half, None])[:, 0], coverage)
        sizes[penalty] = float((scores[half:] <= limit).double().sum(1).mean())
    return min(sizes, key=lambda penalty: (sizes[penalty], penalty)), free


def few(samples: int, coverage: float) -> str | None:
    """Return a note if there are too few samples for a threshold; None if there are enough."""
    needed = conformal.needed(coverage)
    if samples >= needed:
        return None
    return f"not possible from {samples} held-out samples, of which {needed} are needed: every set holds all classes"
