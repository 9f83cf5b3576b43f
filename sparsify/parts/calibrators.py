"""Post-hoc calibrators, fitted on held-out logits in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SMALLEST, _LARGEST = 1e-30, 1e30
"""Bounds of 1/T. They are so wide that only the exact conditions of `fit_temperature` decide whether an optimum exists."""
_FLOAT32 = 1e37
"""Largest |z / T| that may occur in an exported file, which computes in float32."""


class NotIdentifiableError(ValueError):
    """The held-out data do not determine the parameter: its optimum is 0 or infinite."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the T > 0 that minimises the NLL of softmax(z / T) (Guo et al. 2017, section 4.2).

    The NLL is convex in b = 1/T, with derivative mean(sum_k p_k(b) z_k - z_y); bisection in log b finds its root. The fit does not
    depend on the scale of the logits: multiplying them by s multiplies T by s.

    Args:
        logits: float [N, K], finite, or -inf for a class that is ruled out.
        labels: int64 [N], 0 to K - 1.

    Returns:
        T, with a relative error of at most 1e-12.

    Raises:
        NotIdentifiableError: If the optimum is not finite: the logits classify all data correctly (T -> 0), are no better than chance
            (T -> infinity), do not differ between classes, or give the true class no probability at any T.
        ValueError: If the data are empty, or hold NaN or +inf.
    """
    z = checked(logits, labels)
    if (z.gather(1, labels[:, None]) == -torch.inf).any():
        raise NotIdentifiableError("a held-out sample has the logit -inf for its own class, whatever the temperature")
    z = z - z.max(1, keepdim=True).values  # shifts all scores of a sample by one number, which keeps exp finite
    target = z.gather(1, labels[:, None]).squeeze(1)
    finite = z.where(z > -torch.inf, 0.0)
    if not finite.any():
        raise NotIdentifiableError("the logits of every held-out sample are equal for all classes")
    if not target.any():
        raise NotIdentifiableError("the logits classify all held-out data correctly")

    def slope(inverse: float) -> float:
        return float(((torch.softmax(z * inverse, dim=1) * finite).sum(1) - target).mean())

    if slope(_SMALLEST) >= 0:
        raise NotIdentifiableError("the logits are no better than chance on the held-out data")
    low, high = _SMALLEST, _LARGEST
    while high / low > 1 + 1e-12:
        middle = (low * high) ** 0.5
        if middle in (low, high):
            break
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    inverse = (low * high) ** 0.5
    if inverse * float(logits.detach().double().where(logits > -torch.inf, 0.0).abs().max()) > _FLOAT32:
        raise NotIdentifiableError("the best temperature is too close to 0 for single precision")
    return 1 / inverse


def fit_vector_scaling(logits: Tensor, labels: Tensor, *, l2: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Find the scale a and bias b [K] that minimise the NLL of softmax(a * z + b), by Newton's method with line search.

    The problem is convex. ``l2`` makes the optimum finite and unique: it pulls (a, b) towards temperature scaling, (1/T, 0), if the data
    determine T, and towards (1, 0) if they do not.

    Args:
        logits: float [N, K], finite.
        labels: int64 [N], 0 to K - 1.
        l2: weight of the pull, >= 0. The distance of ``a`` is measured in units of 1/T.

    Returns:
        (a [K], b [K]), float64.

    Raises:
        ValueError: If the data are empty or not finite, or the optimum was not reached.
    """
    z, temperature = standardised(logits, labels)
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

    def newton_step(gradient: Tensor, probabilities: Tensor) -> Tensor:
        curvature = _hessian(z, probabilities) + (l2 + 1e-12) * torch.eye(2 * classes).double()
        step, singular = torch.linalg.solve_ex(curvature, gradient)
        if int(singular):
            raise ValueError("vector scaling met a singular system; use temperature scaling")
        return step

    x, steepest = minimum(objective, newton_step, start, stop=1e-9)
    if steepest < 1e-6:
        return x[:classes] / temperature, x[classes:]
    raise ValueError(f"vector scaling stopped at a gradient of {steepest:.1e}; use temperature scaling")


def minimum(
    objective: Callable[[Tensor], tuple[float, Tensor, Tensor]],
    step_of: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    *,
    stop: float,
) -> tuple[Tensor, float]:
    """Minimise a convex function by Newton's method with line search.

    Args:
        objective: returns loss, gradient and probabilities at a point.
        step_of: returns the step to subtract, an ascent direction, from gradient and probabilities.
        x: where to begin.
        stop: the largest entry of a gradient at which the search ends.

    Returns:
        The last point, and the largest entry of its gradient, which is below ``stop`` if rounding allows it.
    """
    loss, gradient, probabilities = objective(x)
    for _ in range(200):
        if float(gradient.abs().max()) < stop:
            break
        step = step_of(gradient, probabilities)
        size, slope = 1.0, float((gradient * step).sum())
        while size > 1e-10:
            trial = objective(x - size * step)
            if trial[0] <= loss - 1e-4 * size * slope:
                break
            size /= 2
        else:
            break
        x = x - size * step
        loss, gradient, probabilities = trial
    return x, float(gradient.abs().max())


def fit_ensemble_temperature(logits: Tensor, labels: Tensor) -> tuple[float, tuple[float, float, float]]:
    """Find T and the weights w of w_1 softmax(z / T) + w_2 softmax(z) + w_3 / K (Zhang et al. 2020, arXiv:2003.07329).

    T is that of `fit_temperature`. The NLL is then convex in w, which is >= 0 and sums to 1: two nested bisections find w_3, and for each
    w_3 how the rest is split.

    Args:
        logits: float [N, K], finite, or -inf for a class that is ruled out.
        labels: int64 [N], 0 to K - 1.

    Returns:
        (T, (w_1, w_2, w_3)); the weights with an error of at most 1e-12 each, exactly 0 or 1 at the ends.

    Raises:
        NotIdentifiableError: If the data do not determine T.
        ValueError: If the data are empty, or hold NaN or +inf.
    """
    temperature = fit_temperature(logits, labels)
    z = checked(logits, labels)
    tempered, plain = (table.softmax(1).gather(1, labels[:, None])[:, 0] for table in (z / temperature, z))
    chance = 1 / z.shape[1]

    def mixed(plain_share: float, uniform: float) -> tuple[Tensor, Tensor]:
        """The probability of the right class without and with the uniform part."""
        rest = (1 - plain_share) * tempered + plain_share * plain
        return rest, ((1 - uniform) * rest + uniform * chance).clamp_min(1e-300)

    def split(uniform: float) -> float:
        return _lowest(lambda share: float(((1 - uniform) * (tempered - plain) / mixed(share, uniform)[1]).mean()))

    def slope(uniform: float) -> float:
        rest, whole = mixed(split(uniform), uniform)
        return float(((rest - chance) / whole).mean())

    uniform = _lowest(slope)
    share = split(uniform)
    return temperature, ((1 - uniform) * (1 - share), (1 - uniform) * share, uniform)


def _lowest(slope: Callable[[float], float]) -> float:
    """Find where a convex function on [0, 1] is lowest, by bisection of its derivative."""
    low, high = 0.0, 1.0
    if slope(low) >= 0:
        return low
    if slope(high) <= 0:
        return high
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2


def standardised(logits: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Divide logits by their temperature, so that a fit does not depend on their scale.

    Args:
        logits: float [N, K], finite.
        labels: int64 [N], 0 to K - 1.

    Returns:
        (z / T [N, K], T), float64. T is 1 if the data do not determine it.

    Raises:
        ValueError: If the data are empty or not finite.
    """
    z = checked(logits, labels)
    if not torch.isfinite(z).all():
        raise ValueError("the held-out logits hold infinity")
    try:
        temperature = fit_temperature(logits, labels)
    except NotIdentifiableError:
        temperature = 1.0
    return z / temperature, temperature


def _hessian(z: Tensor, p: Tensor) -> Tensor:
    """Compute the Hessian of the mean NLL with respect to (a, b), [2K, 2K]."""
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


def checked(logits: Tensor, labels: Tensor) -> Tensor:
    """Return logits [N, K] as float64 on the CPU.

    Raises:
        ValueError: If the data are empty, do not fit together, or hold NaN, +inf or a row of -inf.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(f"expected logits [N, K] and labels [N], found {list(logits.shape)} and {list(labels.shape)}")
    z = logits.detach().cpu().double()
    if (z.isnan() | (z == torch.inf)).any() or (z == -torch.inf).all(1).any():
        raise ValueError("the held-out logits hold NaN or infinity")
    return z
