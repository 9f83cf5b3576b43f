"""Post-hoc calibrators, fitted on held-out logits in float64."""

from __future__ import annotations

import torch
from torch import Tensor

_LOWEST, _HIGHEST = 1e-3, 1e3


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T > 0 that minimises the NLL of softmax(z / T) (Guo et al. 2017, section 4.2).

    In b = 1/T the NLL is convex, with derivative mean(sum_k p_k(b) z_k - z_y); its root is found by bisection in log b.

    Args:
        logits: [N, K].
        labels: int64, [N].

    Returns:
        T within [1e-3, 1e3], to a relative 1e-12.

    Raises:
        ValueError: If the data are empty or not finite, or the optimum is not finite: the logits separate the labels
            perfectly (T -> 0), or are worse than chance (T -> infinity).
    """
    z = _checked(logits, labels)
    target = z.gather(1, labels[:, None]).squeeze(1)

    def slope(inverse: float) -> float:
        probabilities = torch.softmax(z * inverse, dim=1)
        return float(((probabilities * z).sum(1) - target).mean())

    low, high = 1 / _HIGHEST, 1 / _LOWEST
    if slope(low) >= 0:
        raise ValueError(
            "the temperature is not identifiable: the logits are no better than chance on the held-out data"
        )
    if slope(high) <= 0:
        raise ValueError("the temperature is not identifiable: the logits classify all held-out data correctly")
    while high / low > 1 + 1e-12:
        middle = (low * high) ** 0.5
        if middle in (low, high):
            break
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / (low * high) ** 0.5


def fit_vector_scaling(logits: Tensor, labels: Tensor, *, l2: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Scale a and bias b [K] that minimise the NLL of softmax(a * z + b), by Newton's method with line search.

    Convex; ``l2`` pulls (a, b) to (1, 0), which makes the optimum finite and unique.

    Args:
        logits: [N, K].
        labels: int64, [N].
        l2: weight of the pull, >= 0.

    Returns:
        (a [K], b [K]), float64.

    Raises:
        ValueError: If the data are empty or not finite, or the optimum was not reached.
    """
    z = _checked(logits, labels)
    classes = z.shape[1]
    start = torch.cat([torch.ones(classes), torch.zeros(classes)]).double()
    truth = torch.nn.functional.one_hot(labels, classes).double()

    def objective(x: Tensor) -> tuple[float, Tensor, Tensor]:
        scores = z * x[:classes] + x[classes:]
        probabilities = torch.softmax(scores, 1)
        loss = -(truth * torch.log_softmax(scores, 1)).sum(1).mean() + l2 / 2 * ((x - start) ** 2).sum()
        residual = (probabilities - truth) / len(z)
        gradient = torch.cat([(residual * z).sum(0), residual.sum(0)]) + l2 * (x - start)
        return float(loss), gradient, probabilities

    x = start.clone()
    loss, gradient, probabilities = objective(x)
    for _ in range(200):
        if float(gradient.abs().max()) < 1e-9:
            return x[:classes], x[classes:]
        step = torch.linalg.solve(_hessian(z, probabilities) + (l2 + 1e-12) * torch.eye(2 * classes).double(), gradient)
        size = 1.0
        while size > 1e-10:
            trial = objective(x - size * step)
            if trial[0] <= loss - 1e-4 * size * float(gradient @ step):
                break
            size /= 2
        else:
            break
        x = x - size * step
        loss, gradient, probabilities = trial
    if float(gradient.abs().max()) < 1e-6:
        return x[:classes], x[classes:]
    raise ValueError(
        f"vector scaling stopped at a gradient of {float(gradient.abs().max()):.1e}; use temperature scaling"
    )


def _hessian(z: Tensor, p: Tensor) -> Tensor:
    """Of the mean NLL in (a, b), [2K, 2K]."""
    n, classes = z.shape
    features = torch.cat([z, torch.ones_like(z)], 1)
    diagonal = torch.zeros(2 * classes, 2 * classes, dtype=torch.float64)
    weighted = torch.cat([p, p], 1) * features
    outer = weighted.T @ weighted / n
    for i, left in enumerate((z, torch.ones_like(z))):
        for j, right in enumerate((z, torch.ones_like(z))):
            block = torch.diag((p * left * right).sum(0) / n)
            diagonal[i * classes : (i + 1) * classes, j * classes : (j + 1) * classes] = block
    return diagonal - outer


def _checked(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(f"logits [N, K] and labels [N] expected, found {list(logits.shape)} and {list(labels.shape)}")
    z = logits.detach().cpu().double()
    if not torch.isfinite(z).all():
        raise ValueError("the held-out logits hold NaN or infinity")
    return z
