"""Leave-one-out intervals of the last layer by influence functions: the jackknife of a softmax classifier without training it again.

With mean cross-entropy L over n samples, H its Hessian with respect to weight and bias, and g_i the gradient of the loss of sample i, the
parameters without sample i are, to first order, theta + H^-1 g_i / n (Koh and Liang 2017, arXiv:1703.04730). As in the
discriminative jackknife (Alaa and van der Schaar 2020, arXiv:2007.13481), the interval of the probability of class k at a new sample is

    lower = quantile_i(p_k(new; theta_-i) - r_i, a / 2)      r_i = |[y_i = c_i] - p_c_i(i; theta_-i)|
    upper = quantile_i(p_k(new; theta_-i) + r_i, 1 - a / 2)  a = 1 - coverage

where c_i is the class that is predicted for sample i without it. Quantiles interpolate linearly between the n values (`numpy.quantile`'s
default), without a correction for finite n. With two classes this is CALIRARE (Wu et al. 2023, arXiv:2307.09858), because both classes have
the same residual. With more, k is the class predicted for the new sample, and residuals are those of predicted classes as well: a residual
of a fixed class k is small at all samples of other classes, and intervals from such residuals do not cover.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 4096
"""Largest linear system that is solved; `affordable` says how many samples that allows."""
_ENTRIES = 4_000_000
"""Probabilities that are held at a time."""
Link = Callable[[Tensor], Tensor]
"""Computes probabilities [M, K] from logits [M, K], each row by itself."""


def softmax(logits: Tensor) -> Tensor:
    """The usual `Link`."""
    return logits.softmax(1)


@dataclass(frozen=True)
class Jackknife:
    """The leave-one-out parameters of a last layer, as differences to the layer itself. Float64.

    Attributes:
        shifts: [n, K, d + 1], the parameters without sample i minus those with it; the bias is last.
        residuals: [n], r_i, in [0, 1].
    """

    shifts: Tensor
    residuals: Tensor


def affordable(features: int, classes: int) -> int | None:
    """Return the largest number of samples for which `jackknife` solves no system above `LARGEST`; None if any number is fine.

    Args:
        features: d.
        classes: K.
    """
    return None if classes * (features + 1) <= LARGEST else LARGEST // classes


def jackknife(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, *, damping: float = 1e-2, link: Link = softmax
) -> Jackknife:
    """Find the parameters that a last layer would have without each of n samples, and its residuals there.

    The Hessian is exact: for one softmax layer it is the Gauss-Newton matrix. The system has K (d + 1) unknowns, one per parameter, or n K,
    whichever is less.

    Args:
        features: [n, d], what the layer reads.
        labels: int64 [n], in 0 to K - 1.
        weight, bias: [K, d] and [K], of the layer: logits are ``features @ weight.T + bias``.
        damping: added to the diagonal of the Hessian, above 0. The default is that of the published script.
        link: what makes probabilities of the logits for the residuals, such as a calibration head. Parameters are those of the softmax, by
            which the layer was trained.

    Raises:
        ValueError: If there are fewer than two samples, the shapes do not fit, or damping is not above 0.
    """
    x, layer = _extended(features), _layer(weight, bias)
    n, (classes, width) = len(x), layer.shape
    if n < 2 or labels.shape != (n,) or x.shape[1] != width or not damping > 0:
        raise ValueError(
            f"expected features [n, {width - 1}] and labels [n] of n >= 2 samples and a damping above 0, found {list(features.shape)}, "
            f"{list(labels.shape)} and {damping}"
        )
    p, wanted = (x @ layer.T).softmax(1), torch.nn.functional.one_hot(labels, classes).to(x)
    errors = p - wanted
    if classes * width <= n * classes:
        gradients = (errors[:, :, None] * x[:, None, :]).flatten(1)  # [n, P]
        shifts = torch.linalg.solve(_hessian(x, p, damping), gradients.T).T / n
    else:
        shifts = _by_samples(x, p, errors, damping) / n
    shifts = shifts.reshape(n, classes, width)
    confidence, predicted = link(torch.einsum("ikd,id->ik", layer + shifts, x)).max(1)
    return Jackknife(shifts, ((predicted == labels).double() - confidence).abs())


def centres(
    found: Jackknife,
    features: Tensor,
    classes: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    coverage: float = 0.9,
    link: Link = softmax,
) -> Tensor:
    """Return the centre of the interval of p of one class at each of Q new samples, clipped to [0, 1], float64 [Q].

    Args are those of `intervals`. The bounds are not clipped before their mean is taken: otherwise the centre of every wide interval would
    be near 1/2, whatever the probability.
    """
    lower, upper = _bounds(found, features, classes, weight, bias, coverage, link)
    return ((lower + upper) / 2).clamp(0, 1)


def intervals(
    found: Jackknife,
    features: Tensor,
    classes: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    coverage: float = 0.9,
    link: Link = softmax,
) -> tuple[Tensor, Tensor]:
    """Return the bounds of the interval of p of one class at each of Q new samples, clipped to [0, 1], two float64 [Q].

    Args:
        found: from `jackknife`.
        features: [Q, d].
        classes: int64 [Q], the class of each sample whose probability is bounded, such as the predicted one.
        weight, bias: the layer, [K, d] and [K].
        coverage: 1 - a, in (0, 1).
        link: as for `jackknife`.
    """
    lower, upper = _bounds(found, features, classes, weight, bias, coverage, link)
    return lower.clamp(0, 1), upper.clamp(0, 1)


def _bounds(
    found: Jackknife,
    features: Tensor,
    classes: Tensor,
    weight: Tensor,
    bias: Tensor,
    coverage: float,
    link: Link = softmax,
) -> tuple[Tensor, Tensor]:
    if not 0 < coverage < 1:
        raise ValueError(f"expected a coverage between 0 and 1, found {coverage}")
    x, layer = _extended(features), _layer(weight, bias) + found.shifts
    tail, parts = (1 - coverage) / 2, list[tuple[Tensor, Tensor]]()
    residuals, size = found.residuals[:, None], max(1, _ENTRIES // (len(layer) * layer.shape[1]))
    for rows, some in zip(x.split(size), classes.split(size), strict=True):
        logits = torch.einsum("ikd,qd->iqk", layer, rows)
        p = link(logits.flatten(0, 1)).view_as(logits)
        p = p.gather(2, some[None, :, None].expand(len(p), -1, 1)).squeeze(2)  # [n, q]
        parts.append(((p - residuals).quantile(tail, 0), (p + residuals).quantile(1 - tail, 0)))
    lower, upper = zip(*parts, strict=True)
    return torch.cat(lower), torch.cat(upper)


def _extended(features: Tensor) -> Tensor:
    x = features.detach().double()
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


def _layer(weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([weight.detach().double(), bias.detach().double()[:, None]], 1)


def _hessian(x: Tensor, p: Tensor, damping: float) -> Tensor:
    """Return the Hessian of mean cross-entropy with respect to [K, d + 1], plus damping, [P, P]."""
    n, (classes, width) = len(x), (p.shape[1], x.shape[1])
    made = x.new_zeros(classes, width, classes, width)
    for a in range(classes):
        for b in range(a, classes):
            share = p[:, a] * (float(a == b) - p[:, b]) / n
            made[a, :, b] = made[b, :, a] = (x * share[:, None]).T @ x
    return made.reshape(classes * width, -1) + damping * torch.eye(classes * width).to(x)


def _by_samples(x: Tensor, p: Tensor, errors: Tensor, damping: float) -> Tensor:
    """Return H^-1 g_i, [n, P], by a system of n K unknowns (Woodbury's identity): H = damping I + A A^T, A with n K columns."""
    n, classes = p.shape
    roots = p.sqrt()
    factors = (
        torch.diag_embed(roots) - p[:, :, None] * roots[:, None, :]
    )  # [n, K, K], whose square is the Hessian of the logits
    inner = x @ x.T
    gram = torch.einsum("ikc,jke,ij->icje", factors, factors, inner).reshape(n * classes, -1) / n
    right = torch.einsum("ikc,jk,ij->icj", factors, errors, inner).reshape(n * classes, n) / n**0.5
    solved = torch.linalg.solve(gram + damping * torch.eye(n * classes).to(x), right)
    mixed = torch.einsum("ikc,icj->jki", factors, solved.reshape(n, classes, n)) / n**0.5
    return ((errors[:, :, None] * x[:, None, :]) - mixed @ x).flatten(1) / damping
