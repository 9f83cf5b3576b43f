"""Learning to reject: how confident an answer must be so that few of the accepted answers are wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Acceptance:
    """A threshold of confidence, and what it does to the held-out samples.

    Attributes:
        threshold: least confidence of an accepted sample; infinity if none may be accepted.
        accepted: number of held-out samples with at least this confidence.
        wrong: how many of them are wrong.
        bound: the share of wrong answers among accepted new samples is at most this, but for a probability of ``doubt``.
    """

    threshold: float
    accepted: int
    wrong: int
    bound: float


def acceptance(confidence: Tensor, right: Tensor, risk: float, doubt: float) -> Acceptance:
    """Find the lowest threshold of confidence at which at most a share ``risk`` of accepted answers is wrong, with high probability.

    This is selection with guaranteed risk (Geifman and El-Yaniv 2017, arXiv:1705.08500, algorithm 2): a binary search over the N
    confidences, of which each step bounds the risk by the exact binomial bound with a doubt of ``doubt / ceil(log2 N)``.
    The search leaves out numbers of answers that are too few to prove the risk even if all of them are right.

    Args:
        confidence: of N held-out samples, [N].
        right: whether the answer is right, bool [N].
        risk: share of accepted answers that may be wrong, in (0, 1).
        doubt: probability that a larger share of new answers is wrong, in (0, 1).

    Raises:
        ValueError: If there is no sample.

    Examples:
        >>> import torch
        >>> from sparsify.parts.rejection import acceptance
        >>> found = acceptance(torch.linspace(0, 1, 200), torch.arange(200) >= 100, 0.05, 0.1)
        >>> found.wrong, 90 < found.accepted <= 100
        (0, True)
    """
    if not len(confidence):
        raise ValueError("expected at least one sample")
    ordered, order = confidence.double().sort(descending=True, stable=True)
    wrong = (~right[order]).cumsum(0)
    steps = max(1, math.ceil(math.log2(len(ordered))))
    fewest = math.ceil(
        math.log(doubt / steps) / math.log1p(-risk)
    )  # even if all are right, fewer answers prove nothing
    best, low, high = Acceptance(math.inf, 0, 0, 0.0), fewest - 1, len(ordered)
    for _ in range(steps):
        if low >= high:
            break
        middle = (low + high + 1) // 2
        count = int((ordered >= ordered[middle - 1]).sum())  # with those of equal confidence
        found = upper_bound(int(wrong[count - 1]), count, doubt / steps)
        if found <= risk:
            below = float(ordered[count]) if count < len(ordered) else float(ordered[-1]) - 1e-6
            best = Acceptance((float(ordered[count - 1]) + below) / 2, count, int(wrong[count - 1]), found)
            low = max(middle, count)
        else:
            high = middle - 1
    return best


def upper_bound(wrong: int, count: int, doubt: float) -> float:
    """Return the share that an event has at most, but for a probability of ``doubt`` (Clopper and Pearson 1934).

    Args:
        wrong: how often it was seen, at most ``count``.
        count: number of independent samples.
        doubt: in (0, 1).
    """
    from scipy.special import betaincinv

    return 1.0 if wrong >= count else float(betaincinv(wrong + 1, count - wrong, 1 - doubt))
