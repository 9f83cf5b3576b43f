"""Metrics of probabilities [N, K] and labels [N], in float64. ECE: equal-width, right-closed bins (i/M, (i+1)/M], L1 norm.

Every metric refuses values that are not finite, because figures of a diverged model mean nothing. Scores that only rank the classes may be
-inf, which excludes a class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsify.errors import TrainingError
from sparsify.figures import bootstrap
from sparsify.figures.arrays import Array, ArrayLike

LEAST = 1e-12
"""Smallest probability of which a logarithm is taken."""


def finite(values: ArrayLike, what: str, *, ordered: bool = False) -> Array:
    """Return ``values`` as an array if all of them are finite.

    Args:
        values: any shape.
        what: what the values are called in the message, such as "probabilities".
        ordered: the values are only compared with each other along the last dimension; -inf is then allowed in a row that also has a
            finite value.

    Raises:
        TrainingError: If one is NaN or infinite.
    """
    found = np.asarray(values)
    right = np.isfinite(found)
    if ordered and found.ndim:
        right = right | ((found == -np.inf) & right.any(axis=-1, keepdims=True))
    if not right.all():
        wrong = int((~right).sum())
        raise TrainingError(
            f"{wrong} of {found.size} {what} are NaN or infinite, so nothing can be measured with them. Look where the model's values "
            f"leave the range of float32: lower the learning rate, or check the data and the last layers."
        )
    return found


def doubles(values: ArrayLike, what: str) -> Array:
    """Return ``values`` in float64 if all of them are finite; see `finite`.

    Raises:
        TrainingError: If one is NaN or infinite.
    """
    return finite(values, what).astype(np.float64)


def top_label(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Return the confidence of the predicted class, float64 [N], and whether it is the label, bool [N].

    Raises:
        TrainingError: If a probability is not finite.
    """
    table = doubles(probabilities, "probabilities")
    return table.max(1), table.argmax(1) == np.asarray(labels)


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram: its number of samples, their accuracy and mean confidence in [0, 1] (0 if it is empty)."""

    count: int
    accuracy: float
    confidence: float


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Compute the fraction of samples whose highest entry is the label, in [0, 1]; logits [N, K] work as well."""
    return float((finite(probabilities, "scores", ordered=True).argmax(1) == np.asarray(labels)).mean())


def class_accuracy(probabilities: ArrayLike, labels: ArrayLike) -> list[float | None]:
    """Compute the accuracy on the samples of each class, K entries in [0, 1]; None for a class without samples."""
    table, truth = finite(probabilities, "scores", ordered=True), np.asarray(labels)
    right, classes = table.argmax(1) == truth, range(table.shape[1])
    return [float(right[truth == k].mean()) if (truth == k).any() else None for k in classes]


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


def flips(first: ArrayLike, second: ArrayLike, labels: ArrayLike) -> Flips:
    """Compare the decisions (argmax) of ``second`` [N, K] with those of ``first`` [N, K].

    Hooker et al. (2019, arXiv:1911.05248) ask this way which samples a sparse model forgets.
    """
    tables, truth = [finite(scores, "scores", ordered=True) for scores in (first, second)], np.asarray(labels)
    before, after = (table.argmax(1) for table in tables)
    classes = tables[0].shape[1]
    lost, gained = (before == truth) & (after != truth), (before != truth) & (after == truth)

    def by_class(rows: Array) -> list[int]:
        return np.bincount(truth[rows], minlength=classes).tolist()

    everything = np.ones_like(lost)
    counts = int(lost.sum()), int(gained.sum()), int((before != after).sum())
    return Flips(*counts, by_class(lost), by_class(gained), by_class(everything))


def nll(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Compute the mean of -log p_y in nats, with p clipped at `LEAST` from below."""
    table, truth = doubles(probabilities, "probabilities"), np.asarray(labels)
    return float(-np.log(np.maximum(table[np.arange(len(truth)), truth], LEAST)).mean())


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Compute the Brier score: the mean over samples of the sum over classes of (p_k - 1[y = k])^2, in [0, 2]."""
    table, truth = doubles(probabilities, "probabilities"), np.asarray(labels)
    return float(((table - np.eye(table.shape[1])[truth]) ** 2).sum(1).mean())


def reliability(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> list[ReliabilityBin]:
    """Compute accuracy and confidence of the predicted class per equal-width bin; confidences 0 and 1 count in the end bins."""
    return bin_by_width(*top_label(probabilities, labels), bins=bins)


def bin_by_width(confidence: ArrayLike, correct: ArrayLike, *, bins: int) -> list[ReliabilityBin]:
    """Sort confidences [N] into bins (i/M, (i+1)/M] and compare them with ``correct``, bool [N]."""
    values = doubles(confidence, "confidences")
    index = (np.ceil(values * bins).astype(np.int64) - 1).clip(0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    hits = np.bincount(index, weights=np.asarray(correct, np.float64), minlength=bins)
    sums, safe = np.bincount(index, weights=values, minlength=bins), counts.clip(1)
    return [
        ReliabilityBin(int(n), float(a), float(c)) for n, a, c in zip(counts, hits / safe, sums / safe, strict=True)
    ]


def ece(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Compute the expected calibration error of the predicted class, in [0, 1] (Guo et al. 2017, arXiv:1706.04599, eq. 3)."""
    return _gap(reliability(probabilities, labels, bins=bins))


def adaptive_ece(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Compute the ECE over bins with equal numbers of samples, in [0, 1]."""
    return equal_mass_error(*top_label(probabilities, labels), bins=bins)


def equal_mass_error(confidence: ArrayLike, correct: ArrayLike, *, bins: int) -> float:
    """Compute the sum over bins of (n / N) |accuracy - confidence|; all bins have the same number n of samples, up to one."""
    values, right, total = doubles(confidence, "confidences"), np.asarray(correct), 0.0
    for part in np.array_split(values.argsort(kind="stable"), bins):
        if len(part):
            total += len(part) * abs(float(right[part].mean() - values[part].mean()))
    return total / len(values)


def mce(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Compute the maximum calibration error: the largest gap of a bin of `reliability` that holds samples, in [0, 1] (Guo et al. 2017)."""
    return max(abs(row.accuracy - row.confidence) for row in reliability(probabilities, labels, bins=bins) if row.count)


def debiased_l2(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Compute the debiased L2 calibration error of the predicted class, in [0, 1]: the root of `debiased_square`, 0 if that is negative.

    Binned errors grow with the number of bins and shrink with the number of samples, even if the model is calibrated. This figure does so
    much less (Kumar et al. 2019, arXiv:1909.10155).
    """
    return max(debiased_square(*top_label(probabilities, labels), bins=bins), 0.0) ** 0.5


def debiased_square(confidence: ArrayLike, correct: ArrayLike, *, bins: int) -> float:
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
    values = doubles(confidence, "confidences")
    ends = np.unique([part[-1] for part in np.array_split(np.sort(values), bins) if len(part)])
    place = np.searchsorted(ends, values)
    counts = np.bincount(place)
    share = np.bincount(place, weights=np.asarray(correct, np.float64)) / counts
    gap = share - np.bincount(place, weights=values) / counts
    terms = np.where(counts > 1, gap**2 - share * (1 - share) / (counts - 1).clip(1), 0.0)
    return float((counts * terms).sum() / len(values))


def classwise_ece(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Compute the calibration error of p_k against 1[y = k], averaged over classes (Kull et al. 2019 report the sum)."""
    table, truth = np.asarray(probabilities), np.asarray(labels)
    classes = table.shape[1]
    return sum(_gap(bin_by_width(table[:, k], truth == k, bins=bins)) for k in range(classes)) / classes


def signed_gap(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Compute mean confidence minus accuracy, in [-1, 1]: positive is over-confident, negative under-confident."""
    return float(doubles(probabilities, "probabilities").max(1).mean()) - accuracy(probabilities, labels)


def auroc(inside: ArrayLike, outside: ArrayLike) -> float:
    """Compute the probability that a score of ``inside`` [N] exceeds one of ``outside`` [M]; ties count half."""
    scores, yes = _pooled(inside, outside)
    return bootstrap.measured(bootstrap.auroc(scores, yes), len(scores))


def fpr_at_95_tpr(inside: ArrayLike, outside: ArrayLike) -> float:
    """Compute the fraction of ``outside`` accepted by the highest threshold that accepts 95 % of ``inside`` (positive = inside)."""
    known, others = finite(inside, "scores"), finite(outside, "scores")
    keep = -(-95 * len(known) // 100)
    return float((others >= np.sort(known)[-keep]).mean())


def fpr_at_95_tpr_outside(inside: ArrayLike, outside: ArrayLike) -> float:
    """Compute the share of ``inside`` rejected by the lowest threshold that rejects 95 % of ``outside`` (positive = outside; OpenOOD)."""
    return fpr_at_95_tpr(-np.asarray(outside), -np.asarray(inside))


def aupr(positive: ArrayLike, negative: ArrayLike) -> float:
    """Compute average precision, the sum over thresholds of (recall step) x precision; ``positive`` [N] should exceed ``negative`` [M].

    AUPR-in is ``aupr(inside, outside)``, AUPR-out ``aupr(-outside, -inside)``. The value depends on the ratio N : M. Equal scores share
    one threshold.
    """
    scores, yes = _pooled(positive, negative)
    return bootstrap.measured(bootstrap.mean_average_precision(scores[:, None], yes[:, None]), len(scores))


def _pooled(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    """Return the scores of both in one float64 array, and a mask of those that come from the first.

    Raises:
        TrainingError: If a score is not finite.
    """
    known = np.asarray(first)
    scores = doubles(np.concatenate([known, np.asarray(second)]), "scores")
    return scores, np.arange(len(scores)) < len(known)


def _gap(table: list[ReliabilityBin]) -> float:
    total = sum(row.count for row in table)
    return sum(row.count * abs(row.accuracy - row.confidence) for row in table) / total
