"""Statistics of features that scores of out-of-distribution inputs are computed with: means, whitening, residual directions, neighbours.

Features are float64 [N, d]. Pruned networks have units that never fire, so that covariances are singular: small directions are lifted by a
ridge, or left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-6
"""Added to covariances, relative to their mean variance."""


@dataclass(frozen=True)
class Whitening:
    """A centre [d] and a matrix [d, d]: the squared length of ``(h - centre) @ matrix`` is the squared Mahalanobis distance of h."""

    centre: Tensor
    matrix: Tensor


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Compute the mean feature of each class, [K, d]; a class without samples gets the mean of all.

    Args:
        features: [N, d].
        labels: int64 [N], in [0, K).
        classes: K.
    """
    counts = labels.bincount(minlength=classes).to(features.dtype)[:, None]
    sums = torch.zeros(classes, features.shape[1], dtype=features.dtype).index_add(0, labels, features)
    return torch.where(counts > 0, sums / counts.clamp_min(1), features.mean(0))


def whitening(deviations: Tensor, centre: Tensor) -> Whitening:
    """Compute the whitening of deviations from their means.

    Args:
        deviations: [N, d].
        centre: [d], from which new features are measured.

    Raises:
        ValueError: If the deviations are all 0.
    """
    covariance = deviations.T @ deviations / len(deviations)
    typical = float(covariance.diagonal().mean())
    if not typical > 0:
        raise ValueError("the features of the samples do not differ")
    values, vectors = torch.linalg.eigh(covariance)
    return Whitening(centre, vectors / (values.clamp_min(0) + RIDGE * typical).sqrt())


def residual_directions(features: Tensor, origin: Tensor, principal: int) -> tuple[Tensor, int]:
    """Compute the directions in which the features vary least, orthonormal columns of a matrix [d, d] whose other columns are 0.

    Args:
        features: [N, d].
        origin: [d], from which they are measured.
        principal: number of directions of largest variance to leave out; if the features span no more than that, half of what they span.

    Returns:
        The matrix, and how many directions were left out.
    """
    moved = features - origin
    values, vectors = torch.linalg.eigh(moved.T @ moved / len(moved))
    rank = int((values > values[-1] * 1e-10).sum())
    kept = min(principal, rank // 2) if rank <= principal else principal
    least = len(values) - kept
    return torch.cat([vectors[:, :least], torch.zeros(len(values), kept, dtype=features.dtype)], 1), kept


def usual_principal(width: int) -> int:
    """Return how many directions of features of this width count as principal (Wang et al. 2022, arXiv:2203.10807, section 5.2)."""
    return 1000 if width >= 2048 else 512 if width >= 768 else width // 2


def bank(features: Tensor, labels: Tensor, size: int) -> Tensor:
    """Return ``size`` features of length 1, evenly from all classes, [size, d]; with fewer features, the last rows are 0.

    Samples of each class are taken at even steps, so that the same samples always give the same bank.

    Args:
        features: [N, d].
        labels: int64 [N].
        size: number of rows, at least 1.
    """
    if len(features) > size:
        turn = torch.zeros_like(labels)
        for label in labels.unique():
            mine = (labels == label).nonzero()[:, 0]
            turn[mine] = (torch.arange(len(mine)) * len(features)) // len(mine)
        features = features[turn.sort(stable=True).indices[:size]]
    lengths = features.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.cat([features / lengths, features.new_zeros(size - len(features), features.shape[1])])


def contributions(weight: Tensor, mean: Tensor, percent: float) -> Tensor:
    """Keep the entries of a classifier that contribute most to its logits (DICE; Sun and Li 2022, arXiv:2111.09805), and set others to 0.

    The contribution of an entry is its weight times the mean of its feature. An entry is kept if it is not 0 to begin with, and its
    contribution is above the percentile of such entries.

    Args:
        weight: [K, d].
        mean: mean features, [d].
        percent: of the entries, to remove, in [0, 100).

    Raises:
        ValueError: If all weights are 0.
    """
    share, active = weight * mean, weight != 0
    if not bool(active.any()):
        raise ValueError("all weights of the classifier are 0")
    found = share[active].sort().values  # torch.quantile takes 16 million values at most
    below = (len(found) - 1) * percent / 100
    lower, upper = found[math.floor(below)], found[math.ceil(below)]
    return torch.where(active & (share > torch.lerp(lower, upper, below % 1)), weight, 0.0)
