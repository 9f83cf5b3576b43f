"""Selective prediction: how often a classifier is wrong if it only answers the samples that it is most confident of. Float64, no bins.

A threshold cannot separate samples of equal confidence. They are answered together and form one step of the curve, so that no figure
depends on the order of the samples. Coverage is the share of the samples that are answered; risk is the share of wrong answers among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.parts import bootstrap
from sparsify.parts.bootstrap import Figure
from sparsify.parts.metrics import finite


@dataclass(frozen=True)
class RiskCoverage:
    """The risk-coverage curve: one entry per distinct confidence, the highest first.

    Attributes:
        threshold: float64 [S], the confidence at and above which samples are answered, descending.
        answered: float64 [S], how many samples that are; ascending, and N at the end.
        wrong: float64 [S], how many of those answers are wrong.
    """

    threshold: Tensor
    answered: Tensor
    wrong: Tensor

    @property
    def coverage(self) -> Tensor:
        """The share of all samples that is answered, float64 [S], in (0, 1]."""
        return self.answered / self.answered[-1]

    @property
    def risk(self) -> Tensor:
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


def top_label(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the confidence of the predicted class, float64 [N], and whether it is the label, bool [N].

    Raises:
        TrainingError: If a probability is not finite.
    """
    confidence, predicted = finite(probabilities, "probabilities").double().max(1)
    return confidence, predicted == labels


def risk_coverage(confidence: Tensor, correct: Tensor) -> RiskCoverage:
    """Compute the risk-coverage curve (El-Yaniv and Wiener 2010, JMLR 11; Geifman and El-Yaniv 2017, arXiv:1705.08500).

    Args:
        confidence: float [N], N >= 1; samples with a higher one are answered first.
        correct: bool [N], whether the answer is right.

    Raises:
        TrainingError: If a confidence is not finite.
    """
    steps = _steps(finite(confidence, "confidences").double(), correct)
    answered, wrong = steps(torch.ones(1, len(confidence), dtype=torch.float64, device=confidence.device))
    return RiskCoverage(confidence.double().unique().flip(0), answered[0], wrong[0])


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
    last = torch.arange(1, wrong + 1, dtype=torch.float64)  # the wrong answers, after all of the right ones
    return max(aurc(curve) - float((last / (samples - wrong + last)).sum()) / samples, 0.0)


def correctness_auroc(confidence: Tensor, correct: Tensor) -> float | None:
    """Compute the probability that a right answer has a higher confidence than a wrong one; ties count half.

    Args:
        confidence: float [N].
        correct: bool [N].

    Returns:
        A number in [0, 1]; None if no answer is right, or none is wrong.

    Raises:
        TrainingError: If a confidence is not finite.
    """
    confidence = finite(confidence, "confidences").double()
    if bool(correct.all()) or not bool(correct.any()):
        return None
    figure = bootstrap.auroc(confidence, correct)
    return float(figure(torch.ones(1, len(correct), dtype=torch.float64, device=correct.device)))


def coverage_at_risk(curve: RiskCoverage, most: float) -> Selection:
    """Return the largest selection of which at most the share ``most``, in [0, 1], is wrong.

    The risk need not rise with the coverage; the last point of the curve that is low enough counts. The threshold is chosen on the samples
    of the curve, so the risk of other samples may be higher.
    """
    allowed = (curve.risk <= most).nonzero()
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
    kept = torch.arange(most, device=curve.answered.device) * (steps - 1) // (most - 1)
    return RiskCoverage(curve.threshold[kept], curve.answered[kept], curve.wrong[kept])


def resampled_aurc(confidence: Tensor, correct: Tensor) -> Figure:
    """Make the figure `aurc` for draws of the samples; ``confidence`` float64 [N], finite, and ``correct`` bool [N]."""
    steps = _steps(confidence, correct)
    return lambda draws: _area(*steps(draws))


def _steps(confidence: Tensor, correct: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function from draws [B, N] to how many samples are answered at each distinct confidence, and how many wrongly, [B, S]."""
    order = confidence.argsort(descending=True)
    ends = confidence.unique(return_counts=True)[1].flip(0).cumsum(0) - 1
    wrong = (~correct[order]).double()

    def counted(draws: Tensor) -> tuple[Tensor, Tensor]:
        drawn = draws[:, order]
        return drawn.cumsum(1)[:, ends], (drawn * wrong).cumsum(1)[:, ends]

    return counted


def _area(answered: Tensor, wrong: Tensor) -> Tensor:
    """Average the risk [..., S] over the samples; a step without samples, in a draw, counts nothing."""
    each = torch.diff(answered, dim=-1, prepend=torch.zeros_like(answered[..., :1]))
    return (each * wrong / answered.clamp_min(1)).sum(-1) / answered[..., -1]
