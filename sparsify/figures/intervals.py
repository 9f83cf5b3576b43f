"""Means, standard deviations, and intervals for paired differences, for shares and for medians; pure numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean of ``n`` values and their standard deviation, with denominator n - 1; None for a single value."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Paired differences: their mean, standard deviation and number, and the interval of the mean.

    A single pair has neither deviation nor interval.
    """

    mean: float
    deviation: float | None
    n: int
    interval: tuple[float, float] | None

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def spread(values: Sequence[float]) -> Spread:
    """Compute mean and standard deviation.

    Args:
        values: at least one number.

    Raises:
        ValueError: If there is none.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Spread(mean, None, n)
    return Spread(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)), n)


def paired_difference(values: Sequence[float], base: Sequence[float], *, confidence: float = 0.95) -> Difference:
    """Compute the mean of ``values[i] - base[i]`` with Student's two-sided interval, mean ± t(n - 1) s / sqrt(n) (Student 1908).

    The interval assumes that the differences (not the values) are independent draws from one normal distribution. An effect that a seed
    has on both values of a pair cancels.

    Args:
        values: the first value of each pair; at least one pair.
        base: the second value of each pair, in the same order.
        confidence: probability that the interval should cover, in (0, 1).

    Raises:
        ValueError: If the lengths differ or are 0.
    """
    differences = spread([value - other for value, other in zip(values, base, strict=True)])
    if differences.deviation is None:
        return Difference(differences.mean, None, 1, None)
    reach = student_quantile((1 + confidence) / 2, differences.n - 1)
    reach *= differences.deviation / math.sqrt(differences.n)
    return Difference(
        differences.mean, differences.deviation, differences.n, (differences.mean - reach, differences.mean + reach)
    )


def student_quantile(p: float, freedom: int) -> float:
    """Return the t with P(T <= t) = p for Student's distribution.

    Args:
        p: probability, in (0.5, 1).
        freedom: degrees of freedom, a whole number >= 1.

    Raises:
        ValueError: If either is out of range.
    """
    if not 0.5 < p < 1.0 or freedom < 1:
        raise ValueError(f"p should be in (0.5, 1) and freedom at least 1, found {p} and {freedom}")
    from scipy.special import stdtrit  # the quantile function; scipy.stats has it too, and takes longer to load

    return float(stdtrit(freedom, p))


def share_interval(hits: int, samples: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's interval (1927) of a share, which also holds for small numbers and for shares of 0 and 1.

    Args:
        hits: number of hits, 0 to ``samples``.
        samples: number of independent samples, at least 1.
        confidence: probability that the interval should cover, in (0, 1).

    Raises:
        ValueError: If a count is out of range.
    """
    if samples < 1 or not 0 <= hits <= samples:
        raise ValueError(f"expected 0 <= hits <= samples and at least 1 sample; found {hits} of {samples}")
    z, share = _normal_quantile(confidence), hits / samples
    centre = (share + z**2 / (2 * samples)) / (1 + z**2 / samples)
    reach = z * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2)) / (1 + z**2 / samples)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def paired_shares(
    lost: int, gained: int, samples: int, *, confidence: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Compute the difference of two shares of the same samples, with the adjusted interval of Bonett and Price (2012).

    The interval keeps its coverage for small numbers, and does not shrink to a point if no sample changed.

    Args:
        lost: number of samples that only the first share counts.
        gained: number of samples that only the second share counts.
        samples: number of all samples, at least 1; they must be independent.
        confidence: probability that the interval should cover, in (0, 1).

    Returns:
        (gained - lost) / samples, and the interval, within [-1, 1].

    Raises:
        ValueError: If a count is out of range.
    """
    if samples < 1 or min(lost, gained) < 0 or lost + gained > samples:
        raise ValueError(
            f"expected lost + gained <= samples, and at least 1 sample; found {lost} and {gained} of {samples}"
        )
    first, second = (lost + 1) / (samples + 2), (gained + 1) / (samples + 2)
    centre = second - first
    reach = _normal_quantile(confidence) * math.sqrt((first + second - centre**2) / (samples + 2))
    return (gained - lost) / samples, (max(-1.0, centre - reach), min(1.0, centre + reach))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Compute the 95 % interval of a median by order statistics (normal approximation of the binomial ranks).

    Args:
        values: at least 6.
    """
    ordered, n = sorted(values), len(values)
    reach = 1.96 * math.sqrt(n) / 2
    low = max(math.floor(n / 2 - reach), 0)
    high = min(math.ceil(n / 2 + reach), n - 1)
    return ordered[low], ordered[high]


def _normal_quantile(confidence: float) -> float:
    return statistics.NormalDist().inv_cdf((1 + confidence) / 2)
