"""Metrics of probabilities [N, K] and labels [N], in float64. ECE: equal-width, right-closed bins (i/M, (i+1)/M], L1 norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram: how many, their accuracy and mean confidence (0 when empty)."""

    count: int
    accuracy: float
    confidence: float


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Fraction of samples whose highest entry is the label; works on logits as well."""
    return float((probabilities.argmax(1) == labels).double().mean())


def class_accuracy(probabilities: Tensor, labels: Tensor) -> list[float | None]:
    """Accuracy on the samples of each class, K entries; None for a class without samples."""
    right = probabilities.argmax(1) == labels
    classes = range(probabilities.shape[1])
    return [float(right[labels == k].double().mean()) if bool((labels == k).any()) else None for k in classes]


def nll(probabilities: Tensor, labels: Tensor) -> float:
    """Mean of -log p_y in nats, p clipped at 1e-12."""
    picked = probabilities.double().gather(1, labels[:, None]).squeeze(1)
    return float(-picked.clamp_min(1e-12).log().mean())


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Mean over samples of the sum over classes of (p_k - 1[y = k])^2, in [0, 2]."""
    truth = torch.nn.functional.one_hot(labels, probabilities.shape[1]).double()
    return float(((probabilities.double() - truth) ** 2).sum(1).mean())


def reliability(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> list[ReliabilityBin]:
    """Accuracy and confidence of the predicted class per equal-width bin; 0 and 1 are counted in the end bins."""
    confidence, predicted = probabilities.double().max(1)
    return bin_by_width(confidence, predicted == labels, bins=bins)


def bin_by_width(confidence: Tensor, correct: Tensor, *, bins: int) -> list[ReliabilityBin]:
    """Bins (i/M, (i+1)/M] of confidences [N] against a bool tensor [N]."""
    index = ((confidence.double() * bins).ceil().long() - 1).clamp(0, bins - 1)
    counts = torch.bincount(index, minlength=bins)
    hits = torch.bincount(index, weights=correct.double(), minlength=bins)
    sums = torch.bincount(index, weights=confidence.double(), minlength=bins)
    safe = counts.clamp_min(1)
    return [
        ReliabilityBin(int(n), float(a), float(c)) for n, a, c in zip(counts, hits / safe, sums / safe, strict=True)
    ]


def ece(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error of the predicted class (Guo et al. 2017, arXiv:1706.04599, eq. 3)."""
    return _gap(reliability(probabilities, labels, bins=bins))


def adaptive_ece(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """ECE over bins of equal mass."""
    confidence, predicted = probabilities.double().max(1)
    return equal_mass_error(confidence, predicted == labels, bins=bins)


def equal_mass_error(confidence: Tensor, correct: Tensor, *, bins: int) -> float:
    """Sum over equal-mass bins of (n / N) |accuracy - confidence|."""
    order = confidence.double().sort(stable=True).indices
    total = 0.0
    for part in torch.tensor_split(order, bins):
        if len(part):
            total += len(part) * abs(float(correct[part].double().mean() - confidence[part].double().mean()))
    return total / len(confidence)


def classwise_ece(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Mean over classes of the calibration error of p_k against 1[y = k] (Kull et al. 2019 report the sum)."""
    classes = probabilities.shape[1]
    return sum(_gap(bin_by_width(probabilities[:, k], labels == k, bins=bins)) for k in range(classes)) / classes


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that a score of ``inside`` [N] exceeds one of ``outside`` [M]; ties count half."""
    pooled = torch.cat([inside, outside]).double()
    values, inverse, counts = pooled.unique(return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - (counts.double() - 1) / 2
    n, m = len(inside), len(outside)
    del values
    return float((ranks[inverse[:n]].sum() - n * (n + 1) / 2) / (n * m))


def fpr_at_95_tpr(inside: Tensor, outside: Tensor) -> float:
    """Fraction of ``outside`` accepted by the highest threshold that accepts 95 % of ``inside`` (positive = inside)."""
    keep = -(-95 * len(inside) // 100)
    threshold = inside.sort(descending=True).values[keep - 1]
    return float((outside >= threshold).double().mean())


def _gap(table: list[ReliabilityBin]) -> float:
    total = sum(row.count for row in table)
    return sum(row.count * abs(row.accuracy - row.confidence) for row in table) / total
