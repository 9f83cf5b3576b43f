"""Individual calibration: how far each sample's confidence is from the centre of its leave-one-out interval, as a loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.parts.jackknife import Jackknife, affordable, centres, jackknife


@dataclass(frozen=True)
class IndividualCalibration:
    """How training is pulled towards individual calibration.

    Attributes:
        weight: weight of the error, in [0, 1]; the loss of the method has 1 minus that.
        refresh: steps between computations of the leave-one-out parameters, at least 1.
        samples: training samples that are set aside for them, at least 2.
        coverage: of the intervals, in (0, 1).
        damping: of the Hessian, above 0.
    """

    weight: float
    refresh: int
    samples: int
    coverage: float
    damping: float

    def fits(self, features: int, classes: int) -> int:
        """Return the number of samples, or the largest one that a last layer of this size allows, if that is less."""
        most = affordable(features, classes)
        return self.samples if most is None else min(self.samples, most)

    def pieces(self, features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> Jackknife:
        """Compute the leave-one-out parameters; arguments as for `sparsify.parts.jackknife.jackknife`."""
        return jackknife(features, labels, weight, bias, damping=self.damping)

    def error(self, logits: Tensor, found: Jackknife, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute the mean of |confidence - centre| over a batch, a scalar; the gradient flows through the logits only.

        Args:
            logits: [N, K].
            found: from `pieces`.
            features: [N, d] of the same samples.
            weight, bias: the last layer now, [K, d] and [K].
        """
        confidence, predicted = logits.softmax(1).max(1)
        with torch.no_grad():
            centre = centres(found, features, predicted, weight, bias, coverage=self.coverage)
        return (confidence - centre.to(confidence)).abs().mean()

    def joined(self, loss: Tensor, error: Tensor) -> Tensor:
        """Combine the loss of the method with the error."""
        return (1 - self.weight) * loss + self.weight * error


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` of N samples so that classes have the shares that they have among all; returns ascending indices, int64 [count].

    Samples are put in a random order, sorted by class, and taken at equal distances.

    Args:
        labels: int64 [N], N >= count.
        count: how many to draw.
        generator: of the random order and the first place.
    """
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    start = float(torch.rand((), generator=generator, dtype=torch.float64))
    places = ((torch.arange(count, dtype=torch.float64) + start) * len(labels) / count).long()
    return order[places.clamp(max=len(labels) - 1)].sort().values
