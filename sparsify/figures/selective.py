"""Selective prediction: how often a classifier is wrong if it only answers the samples that it is most confident of. Float64, no bins.

A threshold cannot separate samples of equal confidence. They are answered together and form one step of the curve, so that no figure
depends on the order of the samples. Coverage is the share of the samples that are answered; risk is the share of wrong answers among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparsify.figures import bootstrap
from sparsify.figures.arrays import Array, ArrayLike
from sparsify.figures.bootstrap import Figure
from sparsify.figures.metrics import doubles


@dataclass(frozen=True)
class RiskCoverage:
    """The risk-coverage curve: one entry per distinct confidence, the highest first.

    Attributes:
        threshold: float64 [S], the confidence at and above which samples are answered, descending.
        answered: float64 [S], how many samples that are; ascending, and N at the end.
        wrong: float64 [S], how many of those answers are wrong.
    """

    threshold: Array
    answered: Array
    wrong: Array

    @property
    def coverage(self) -> Array:
        """The share of all samples that is answered, float64 [S], in (0, 1]."""
        return self.answered / self.answered[-1]

    @property
    def risk(self) -> Array:
        """The share of the answers that is wrong, float64 [S], in [0, 1]."""
        return self.wrong / self.answered


@dataclass(frozen=True)
class Selection:
    """The samples that a threshold on the confidence selects: number, share of all samples, share of wrong answers, and the threshold.

    If nothing is selected, the number and both shares are 0, and the threshold is None.
    """

    samples: int
    coverage: float
    risk: float
    threshold: float | None


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """Compute the risk-coverage curve (El-Yaniv and Wiener 2010, JMLR 11; Geifman and El-Yaniv 2017, arXiv:1705.08500).

    Args:
        confidence: float [N], N >= 1; samples with a higher one are answered first.
        correct: bool [N], whether the answer is right.

    Raises:
        TrainingError: If a confidence is not finite.
    """
    values = doubles(confidence, "confidences")
    answered, wrong = _steps(values, correct)(np.ones((1, len(values))))
    return RiskCoverage(np.unique(values)[::-1], answered[0], wrong[0])


def aurc(curve: RiskCoverage) -> float:
    """Compute the area under the risk-coverage curve, in [0, 1]: the risk at each sample's own confidence, averaged over the samples.

    Without ties, this is the empirical AURC of Geifman et al. (2019, arXiv:1805.08206).
    """
    return float(_area(curve.answered, curve.wrong))


def excess_aurc(curve: RiskCoverage) -> float:
    """Compute AURC minus that of the best order of as many right and wrong answers, in [0, 1] (E-AURC, Geifman et al. 2019).

    It is 0 if every right answer has a higher confidence than every wrong one. Unlike AURC, it hardly depends on accuracy.
    """
    samples, wrong = int(curve.answered[-1]), int(curve.wrong[-1])
    last = np.arange(1.0, wrong + 1)  # the wrong answers, after all of the right ones
    return max(aurc(curve) - float((last / (samples - wrong + last)).sum()) / samples, 0.0)


def correctness_auroc(confidence: ArrayLike, correct: ArrayLike) -> float | None:
    """Compute the probability that a right answer has a higher confidence than a wrong one; ties count half.

    Args:
        confidence: float [N].
        correct: bool [N].

    Returns:
        A number in [0, 1]; None if no answer is right, or none is wrong.

    Raises:
        TrainingError: If a confidence is not finite.
    """
    values, right = doubles(confidence, "confidences"), np.asarray(correct)
    if right.all() or not right.any():
        return None
    return bootstrap.measured(bootstrap.auroc(values, right), len(values))


def coverage_at_risk(curve: RiskCoverage, most: float) -> Selection:
    """Return the largest selection of which at most the share ``most``, in [0, 1], is wrong.

    The risk need not rise with the coverage; the last point of the curve that is low enough counts. The threshold is chosen on the samples
    of the curve, so the risk of other samples may be higher.
    """
    allowed = np.flatnonzero(curve.risk <= most)
    if not len(allowed):
        return Selection(0, 0.0, 0.0, None)
    last = int(allowed[-1])
    coverage, risk, threshold = (float(values[last]) for values in (curve.coverage, curve.risk, curve.threshold))
    return Selection(int(curve.answered[last]), coverage, risk, threshold)


def thinned(curve: RiskCoverage, most: int) -> RiskCoverage:
    """Return at most ``most`` steps of a curve, evenly spaced, with the first and the last; ``most`` >= 2."""
    steps = len(curve.answered)
    if steps <= most:
        return curve
    kept = np.arange(most) * (steps - 1) // (most - 1)
    return RiskCoverage(curve.threshold[kept], curve.answered[kept], curve.wrong[kept])


def resampled_aurc(confidence: ArrayLike, correct: ArrayLike) -> Figure:
    """Make the figure `aurc` for draws of the samples; ``confidence`` float64 [N], finite, and ``correct`` bool [N]."""
    steps = _steps(confidence, correct)
    return lambda draws: _area(*steps(draws))


def _steps(confidence: ArrayLike, correct: ArrayLike) -> Callable[[Array], tuple[Array, Array]]:
    """Return a function from draws [B, N] to how many samples are answered at each distinct confidence, and how many wrongly, [B, S]."""
    values = np.asarray(confidence)
    order = values.argsort()[::-1]
    ends = np.unique(values, return_counts=True)[1][::-1].cumsum() - 1
    wrong = (~np.asarray(correct)[order]).astype(np.float64)

    def counted(draws: Array) -> tuple[Array, Array]:
        drawn = np.asarray(draws)[:, order]
        return drawn.cumsum(1)[:, ends], (drawn * wrong).cumsum(1)[:, ends]

    return counted


def _area(answered: Array, wrong: Array) -> Array:
    """Average the risk [..., S] over the samples; a step without samples, in a draw, counts nothing."""
    each = np.diff(answered, axis=-1, prepend=0.0)
    return (each * wrong / answered.clip(1)).sum(-1) / answered[..., -1]
