"""Losses that keep a classifier from being too sure while it trains: cross-entropy with another target, weight, penalty or scale.

Each is a function of the logits and labels of a batch and returns a scalar, the mean over the batch. With p = softmax(z), y the label and
ŷ the class of the highest logit, the docstrings give the equations. A penalty of weight 0, or a focusing of gamma 0, is cross-entropy, bit
for bit. A logit of minus infinity is a class of probability 0, as in `torch.nn.functional.cross_entropy`; losses that compare logits
(`label_smoothing`, `maxsup`, `mbls`, `acls`) are then infinite, as cross-entropy with label smoothing is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.errors import TrainingError


def check_classes(logits: Tensor, labels: Tensor) -> None:
    """Check that logits are [N, K] and labels are class numbers [N]; the numbers themselves are not read.

    Raises:
        TrainingError: If they are not.
    """
    whole = not (labels.is_floating_point() or labels.dtype is torch.bool)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not whole:
        raise TrainingError(
            f"this loss takes logits [N, K] and class numbers, int [N]; found logits {list(logits.shape)} and a target "
            f"{str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}. For one-hot targets, pass target.argmax(1)."
        )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute -ln p_y, the mean over the batch, for class numbers only.

    Args:
        logits: float [N, K].
        labels: int64 [N], 0 to K - 1.

    Raises:
        TrainingError: If the target is not one class per sample.
    """
    check_classes(logits, labels)
    return functional.cross_entropy(logits, labels)


def label_smoothing(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Compute the cross-entropy to (1 - smoothing) · onehot(y) + smoothing / K (Szegedy et al. 2016, arXiv:1512.00567).

    This equals cross-entropy + smoothing · (z_y - mean of z). Code that gives e / (K - 1) to each class except the label is this with a
    smoothing of e · K / (K - 1).

    Args:
        logits: float [N, K].
        labels: int64 [N], 0 to K - 1.
        smoothing: share of the target that all classes get, in [0, 1).

    Raises:
        TrainingError: If the target is not one class per sample.
    """
    check_classes(logits, labels)
    return functional.cross_entropy(logits, labels, label_smoothing=smoothing)


def maxsup(logits: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Compute cross-entropy + weight · (max of z - mean of z) (Zhou et al. 2025, arXiv:2502.15798).

    Label smoothing lowers the logit of the label, this the highest logit, whether it is right or wrong.

    Args:
        logits: float [N, K].
        labels: int64 [N], 0 to K - 1.
        weight: weight of the penalty, at least 0.

    Raises:
        TrainingError: If the target is not one class per sample.
    """
    loss = cross_entropy(logits, labels)
    return loss + weight * (logits.amax(1) - logits.mean(1)).mean() if weight else loss


def focal(
    logits: Tensor, labels: Tensor, *, gamma: float, hard_gamma: float | None = None, hard_below: float = 0.2
) -> Tensor:
    """Compute -(1 - p_y)^gamma ln p_y (Lin et al. 2017, arXiv:1708.02002; for calibration, Mukhoti et al. 2020, arXiv:2002.09437).

    Args:
        logits: float [N, K].
        labels: int64 [N], 0 to K - 1.
        gamma: the exponent, at least 0.
        hard_gamma: exponent of samples with p_y below ``hard_below``; None: ``gamma``. Gamma 3 and 5 below 0.2 is FLSD-53.
        hard_below: in [0, 1].

    Raises:
        TrainingError: If the target is not one class per sample.
    """
    if not gamma and not hard_gamma:
        return cross_entropy(logits, labels)
    check_classes(logits, labels)
    logs = logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
    missing = _above_zero(-torch.expm1(logs))
    weight = missing**gamma
    if hard_gamma is not None:
        weight = torch.where(logs.detach().exp() < hard_below, missing**hard_gamma, weight)
    return -(weight * logs).mean()


def dual_focal(logits: Tensor, labels: Tensor, *, gamma: float) -> Tensor:
    """Compute -(1 - p_y + p_j)^gamma ln p_y, with p_j the highest p below p_y, or 0 (Tao et al. 2023, arXiv:2305.13665).

    Gradients flow through p_j, as in the published code. A class of the same probability as the label's is not below it.

    Args:
        logits: float [N, K].
        labels: int64 [N], 0 to K - 1.
        gamma: the exponent, at least 0.

    Raises:
        TrainingError: If the target is not one class per sample.
    """
    if not gamma:
        return cross_entropy(logits, labels)
    check_classes(logits, labels)
    every = logits.log_softmax(1)
    logs = every.gather(1, labels[:, None])
    below = every.masked_fill(every >= logs, -torch.inf).amax(1).exp()
    logs = logs.squeeze(1)
    return -(_above_zero(below - torch.expm1(logs)) ** gamma * logs).mean()


def _above_zero(base: Tensor) -> Tensor:
    """Return ``base``, at least the smallest normal number: a power of 0 has an infinite gradient if the exponent is below 1."""
    return base.clamp_min(torch.finfo(base.dtype).tiny)


def mbls(logits: Tensor, labels: Tensor, *, weight: float, margin: float) -> Tensor:
    """Compute cross-entropy + weight · mean over k of max(0, max of z - z_k - margin) (MbLS: Liu et al. 2022, arXiv:2111.15430).

    Gradients flow through the maximum. The mean counts all K classes, including ŷ itself.

    Args:
        logits: float [N, K].
        labels: int64 [N], 0 to K - 1.
        weight: weight of the penalty, at least 0.
        margin: distance of logits that is free, at least 0.

    Raises:
        TrainingError: If the target is not one class per sample.
    """
    loss = cross_entropy(logits, labels)
    if not weight:
        return loss
    return loss + weight * (logits.amax(1, keepdim=True) - logits - margin).relu().mean()


def acls(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: float,
    margin: float,
    positive: float = 1.0,
    negative: float = 0.1,
    relative: bool = False,
) -> Tensor:
    """Compute cross-entropy + weight · (positive · P + negative · Q) (ACLS: Park et al. 2023, arXiv:2308.11911).

    P = max(0, z_ŷ - margin)^2 and Q = sum over k ≠ ŷ of max(0, z_ŷ - z_k - margin)^2 / (K - 1), where no gradient flows through z_ŷ in Q.
    Classes that share the highest logit all count as ŷ. P of the published code depends on a constant added to all logits; ``relative``
    puts z_ŷ - min of z in place of z_ŷ, which does not.

    Args:
        logits: float [N, K].
        labels: int64 [N], 0 to K - 1.
        weight: weight of the penalty, at least 0.
        margin: logit, or distance of logits, that is free; at least 0.
        positive: weight of P, at least 0.
        negative: weight of Q, at least 0.
        relative: whether P measures the highest logit from the lowest; gradients flow through both.

    Raises:
        TrainingError: If the target is not one class per sample.
    """
    loss = cross_entropy(logits, labels)
    if not weight:
        return loss
    (samples, classes), top = logits.shape, logits.amax(1, keepdim=True)
    highest = logits == top
    height = logits - logits.amin(1, keepdim=True) if relative else logits
    over = (height - margin).relu().square().masked_fill(~highest, 0.0).sum()
    under = (top.detach() - logits - margin).relu().square().masked_fill(highest, 0.0).sum()
    penalty = positive * over / samples + negative * under / (samples * max(classes - 1, 1))
    return loss + weight * penalty


def mmce(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: float,
    width: float = 0.4,
    squared: bool = False,
    weighted: bool = False,
) -> Tensor:
    """Compute cross-entropy + weight · MMCE, the maximum mean calibration error of the batch (Kumar et al. 2018, ICML).

    MMCE^2 = mean over all pairs i, j of samples of (c_i - r_i) (c_j - r_j) exp(-|r_i - r_j| / width), where r is the highest probability of
    a sample, and c is 1 if that is the label's, else 0. With ``weighted``, each c - r is divided by the share of samples with the same c,
    so that a few wrong predictions count as much as many right ones. Gradients flow through r. The estimate is of the batch, so its
    expected value depends on the size of the batch.

    Args:
        logits: float [N, K].
        labels: int64 [N], 0 to K - 1.
        weight: weight of the penalty, at least 0.
        width: of the kernel, in probability, above 0.
        squared: whether the penalty is MMCE^2 in place of its root.
        weighted: whether right and wrong predictions have the same total weight.

    Raises:
        TrainingError: If the target is not one class per sample.
    """
    loss = cross_entropy(logits, labels)
    if not weight:
        return loss
    confidence, predicted = logits.softmax(1).max(1)
    right = predicted == labels
    excess = right.to(confidence.dtype) - confidence
    if weighted:
        share = right.to(confidence.dtype).mean()
        excess = excess / torch.where(right, share, 1 - share)
    kernel = (-(confidence[:, None] - confidence).abs() / width).exp()
    penalty = excess @ (kernel @ excess) / len(excess) ** 2
    return loss + weight * (penalty if squared else _above_zero(penalty).sqrt())


def logit_norm(logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Compute the cross-entropy of z / (temperature · (L2 norm of z + 1e-7)) (LogitNorm: Wei et al. 2022, arXiv:2205.09310).

    A logit of minus infinity stays one and is no part of the norm.

    Args:
        logits: float [N, K].
        labels: int64 [N], 0 to K - 1.
        temperature: above 0.

    Raises:
        TrainingError: If the target is not one class per sample.
    """
    impossible = logits == -torch.inf
    possible = logits.masked_fill(impossible, 0.0)
    scale = temperature * (torch.linalg.vector_norm(possible, dim=-1, keepdim=True) + 1e-7)
    return cross_entropy((possible / scale).masked_fill(impossible, -torch.inf), labels)
