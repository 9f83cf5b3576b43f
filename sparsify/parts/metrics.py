"""Metrics of probabilities [N, K] and labels [N], in float64. ECE: equal-width, right-closed bins (i/M, (i+1)/M], L1 norm.

Every metric refuses values that are not finite, because figures of a diverged model mean nothing. Scores that only rank the classes may be
-inf, which excludes a class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import TrainingError
from sparsify.parts import bootstrap


def finite(values: Tensor, what: str, *, ordered: bool = False) -> Tensor:
    """Return ``values`` if all of them are finite.

    Args:
        values: any shape.
        what: what the values are called in the message, such as "probabilities".
        ordered: the values are only compared with each other along the last dimension; -inf is then allowed in a row that also has a
            finite value.

    Raises:
        TrainingError: If one is NaN or infinite.
    """
    right = values.isfinite()
    if ordered and values.ndim:
        right = right | ((values == -torch.inf) & right.any(dim=-1, keepdim=True))
    if not bool(right.all()):
        wrong = int((~right).sum())
        raise TrainingError(
            f"{wrong} of {values.numel()} {what} are NaN or infinite, so nothing can be measured with them. Look where the model's values "
            f"leave the range of float32: lower the learning rate, or check the data and the last layers."
        )
    return values


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram: its number of samples, their accuracy and mean confidence in [0, 1] (0 if it is empty)."""

    count: int
    accuracy: float
    confidence: float


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Compute the fraction of samples whose highest entry is the label, in [0, 1]; logits [N, K] work as well."""
    return float((finite(probabilities, "scores", ordered=True).argmax(1) == labels).double().mean())


def class_accuracy(probabilities: Tensor, labels: Tensor) -> list[float | None]:
    """Compute the accuracy on the samples of each class, K entries in [0, 1]; None for a class without samples."""
    right = finite(probabilities, "scores", ordered=True).argmax(1) == labels
    classes = range(probabilities.shape[1])
    return [float(right[labels == k].double().mean()) if bool((labels == k).any()) else None for k in classes]


@dataclass(frozen=True)
class Flips:
    """How the decisions of two models differ on the same samples, overall and by class of the label.

    Attributes:
        lost: number of samples that the first model has right and the second has wrong.
        gained: number of samples that the first model has wrong and the second has right.
        changed: number of samples whose decision differs, right or wrong.
        class_lost, class_gained: ``lost`` and ``gained`` by class, K entries.
        class_samples: number of samples of each class, K entries.
    """

    lost: int
    gained: int
    changed: int
    class_lost: list[int]
    class_gained: list[int]
    class_samples: list[int]


def flips(first: Tensor, second: Tensor, labels: Tensor) -> Flips:
    """Compare the decisions (argmax) of ``second`` [N, K] with those of ``first`` [N, K].

    Hooker et al. (2019, arXiv:1911.05248) ask this way which samples a sparse model forgets.
    """
    before, after = (finite(scores, "scores", ordered=True).argmax(1) for scores in (first, second))
    classes = first.shape[1]
    lost, gained = (before == labels) & (after != labels), (before != labels) & (after == labels)

    def by_class(rows: Tensor) -> list[int]:
        return torch.bincount(labels[rows], minlength=classes).tolist()

    everything = torch.ones_like(lost)
    counts = int(lost.sum()), int(gained.sum()), int((before != after).sum())
    return Flips(*counts, by_class(lost), by_class(gained), by_class(everything))


def nll(probabilities: Tensor, labels: Tensor) -> float:
    """Compute the mean of -log p_y in nats, with p clipped at 1e-12 from below."""
    picked = finite(probabilities, "probabilities").double().gather(1, labels[:, None]).squeeze(1)
    return float(-picked.clamp_min(1e-12).log().mean())


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Compute the Brier score: the mean over samples of the sum over classes of (p_k - 1[y = k])^2, in [0, 2]."""
    truth = torch.nn.functional.one_hot(labels, probabilities.shape[1]).double()
    return float(((finite(probabilities, "probabilities").double() - truth) ** 2).sum(1).mean())


def reliability(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> list[ReliabilityBin]:
    """Compute accuracy and confidence of the predicted class per equal-width bin; confidences 0 and 1 count in the end bins."""
    confidence, predicted = finite(probabilities, "probabilities").double().max(1)
    return bin_by_width(confidence, predicted == labels, bins=bins)


def bin_by_width(confidence: Tensor, correct: Tensor, *, bins: int) -> list[ReliabilityBin]:
    """Sort confidences [N] into bins (i/M, (i+1)/M] and compare them with ``correct``, bool [N]."""
    index = ((finite(confidence, "confidences").double() * bins).ceil().long() - 1).clamp(0, bins - 1)
    counts = torch.bincount(index, minlength=bins)
    hits = torch.bincount(index, weights=correct.double(), minlength=bins)
    sums = torch.bincount(index, weights=confidence.double(), minlength=bins)
    safe = counts.clamp_min(1)
    return [
        ReliabilityBin(int(n), float(a), float(c)) for n, a, c in zip(counts, hits / safe, sums / safe, strict=True)
    ]


def ece(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Compute the expected calibration error of the predicted class, in [0, 1] (Guo et al. 2017, arXiv:1706.04599, eq. 3)."""
    return _gap(reliability(probabilities, labels, bins=bins))


def adaptive_ece(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Compute the ECE over bins with equal numbers of samples, in [0, 1]."""
    confidence, predicted = finite(probabilities, "probabilities").double().max(1)
    return equal_mass_error(confidence, predicted == labels, bins=bins)


def equal_mass_error(confidence: Tensor, correct: Tensor, *, bins: int) -> float:
    """Compute the sum over bins of (n / N) |accuracy - confidence|; all bins have the same number n of samples, up to one."""
    order = finite(confidence, "confidences").double().sort(stable=True).indices
    total = 0.0
    for part in torch.tensor_split(order, bins):
        if len(part):
            total += len(part) * abs(float(correct[part].double().mean() - confidence[part].double().mean()))
    return total / len(confidence)


def mce(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Compute the maximum calibration error: the largest gap of a bin of `reliability` that holds samples, in [0, 1] (Guo et al. 2017)."""
    return max(abs(row.accuracy - row.confidence) for row in reliability(probabilities, labels, bins=bins) if row.count)


def debiased_l2(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Compute the debiased L2 calibration error of the predicted class, in [0, 1]: the root of `debiased_square`, 0 if that is negative.

    Binned errors grow with the number of bins and shrink with the number of samples, even if the model is calibrated. This figure does so
    much less (Kumar et al. 2019, arXiv:1909.10155).
    """
    confidence, predicted = finite(probabilities, "probabilities").double().max(1)
    return max(debiased_square(confidence, predicted == labels, bins=bins), 0.0) ** 0.5


def debiased_square(confidence: Tensor, correct: Tensor, *, bins: int) -> float:
    """Compute the sum over bins of (n / N) ((accuracy - confidence)^2 - accuracy (1 - accuracy) / (n - 1)), which may be negative.

    The second term is the part of the square that chance explains. Bins have equal numbers of samples, as far as samples of equal
    confidence, which share a bin, allow it. A bin of one sample counts 0.

    Args:
        confidence: float [N].
        correct: bool [N].
        bins: largest number of bins.

    Raises:
        TrainingError: If a confidence is not finite.
    """
    confidence = finite(confidence, "confidences").double()
    parts = [part for part in confidence.sort().values.tensor_split(bins) if len(part)]
    place = torch.bucketize(confidence, torch.stack([part[-1] for part in parts]).unique())
    counts = torch.bincount(place)
    share = torch.bincount(place, weights=correct.double()) / counts
    gap = share - torch.bincount(place, weights=confidence) / counts
    terms = (gap**2 - share * (1 - share) / (counts - 1).clamp_min(1)).where(counts > 1, 0.0)
    return float((counts * terms).sum() / len(confidence))


def classwise_ece(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Compute the calibration error of p_k against 1[y = k], averaged over classes (Kull et al. 2019 report the sum)."""
    classes = probabilities.shape[1]
    return sum(_gap(bin_by_width(probabilities[:, k], labels == k, bins=bins)) for k in range(classes)) / classes


def signed_gap(probabilities: Tensor, labels: Tensor) -> float:
    """Compute mean confidence minus accuracy, in [-1, 1]: positive is over-confident, negative under-confident."""
    return float(finite(probabilities, "probabilities").double().max(1).values.mean()) - accuracy(probabilities, labels)


def individual_calibration_error(probabilities: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Compute each sample's confidence minus the centre of the interval of its predicted class, [N].

    ``abs().mean()`` of the result is the expected individual calibration error (EICE) of CALIRARE, which needs no bins. ``mean()`` is
    positive for an over-confident model and negative for an under-confident one. Select the rows of one class for that class's error. The
    published code always compares with the interval of class 1, even if another class was predicted, and so charges a calibrated 0.05
    with an error of 0.90; this function uses the predicted class.

    Args:
        probabilities: [N, K].
        lower, upper: [N, K], bounds of each p_k, for example from a jackknife. The centre is clipped to [0, 1].
    """
    confidence, predicted = finite(probabilities, "probabilities").double().max(1)
    centre = ((finite(lower, "bounds").double() + finite(upper, "bounds").double()) / 2).clamp(0, 1)
    return confidence - centre.gather(1, predicted[:, None]).squeeze(1)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Compute the probability that a score of ``inside`` [N] exceeds one of ``outside`` [M]; ties count half."""
    scores, yes = _pooled(inside, outside)
    return float(bootstrap.auroc(scores, yes)(torch.ones(1, len(scores), dtype=torch.float64, device=scores.device)))


def fpr_at_95_tpr(inside: Tensor, outside: Tensor) -> float:
    """Compute the fraction of ``outside`` accepted by the highest threshold that accepts 95 % of ``inside`` (positive = inside)."""
    inside, outside = finite(inside, "scores"), finite(outside, "scores")
    keep = -(-95 * len(inside) // 100)
    threshold = inside.sort(descending=True).values[keep - 1]
    return float((outside >= threshold).double().mean())


def fpr_at_95_tpr_outside(inside: Tensor, outside: Tensor) -> float:
    """Compute the share of ``inside`` rejected by the lowest threshold that rejects 95 % of ``outside`` (positive = outside; OpenOOD)."""
    return fpr_at_95_tpr(-outside, -inside)


def aupr(positive: Tensor, negative: Tensor) -> float:
    """Compute average precision, the sum over thresholds of (recall step) x precision; ``positive`` [N] should exceed ``negative`` [M].

    AUPR-in is ``aupr(inside, outside)``, AUPR-out ``aupr(-outside, -inside)``. The value depends on the ratio N : M. Equal scores share
    one threshold.
    """
    scores, yes = _pooled(positive, negative)
    figure = bootstrap.mean_average_precision(scores[:, None], yes[:, None])
    return float(figure(torch.ones(1, len(scores), dtype=torch.float64, device=scores.device)))


def _pooled(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores of both in one float64 tensor, and a mask of those that come from the first.

    Raises:
        TrainingError: If a score is not finite.
    """
    scores = finite(torch.cat([first, second]), "scores").double()
    return scores, torch.arange(len(scores), device=scores.device) < len(first)


def _gap(table: list[ReliabilityBin]) -> float:
    total = sum(row.count for row in table)
    return sum(row.count * abs(row.accuracy - row.confidence) for row in table) / total
