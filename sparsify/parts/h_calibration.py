"""h-calibration: a monotone piecewise-linear map of log-probabilities, fitted to errors that are averaged over neighbouring probabilities.

The loss and the map are those of Huang et al. 2025 (arXiv:2506.17968), with two differences. The released code interpolates each segment
from the value of the map at its end, which makes the map jump where slopes differ; `piecewise` is the continuous function that the paper
describes. And the fit stops early by samples of its own, where the released code uses those it is fitted to.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.parts.calibrators import checked, fit_temperature

HIGHEST = 100.0
"""Largest -log p that the map tells apart."""
WINDOW = 201
"""Neighbours that an error is averaged over, an odd number."""
TOLERATED = 1e-20
"""Averaged error that counts for nothing."""
CLUSTERS, LLOYD = 15, 25
"""Clusters of probabilities, and most iterations that find them."""
FACTOR = 1e5
RATE = 0.01
"""Learning rate of Adam for the logarithms of the slopes."""
STEPS, EVERY, PATIENCE = 200, 5, 50
"""Most steps of a fit, steps between looks at the samples apart, and steps without a better look that end it."""
ENTRIES = 2**17
"""Most probabilities that a step sorts; of larger data, each step draws samples."""
WORK = 2**18
"""Most probabilities that a step averages; if all classes have more, each step draws classes."""
APART = 5
"""One of so many samples is kept apart from the fit, to stop it early and to choose the number of segments."""
SEGMENTS = (1, 10, 50)
"""Numbers of segments that are tried; each divides the last, so that the last number can hold all."""


@dataclass(frozen=True)
class Slopes:
    """A fitted map.

    Attributes:
        slopes: float64 [S], positive, S = SEGMENTS[-1].
        segments: the number of segments that was chosen.
        steps: the step after which they were best; 0 if no step was better than a temperature.
        nll_before, nll_after: NLL of the samples apart with the temperature that the fit began with, and with the slopes.
    """

    slopes: Tensor
    segments: int
    steps: int
    nll_before: float
    nll_after: float


def piecewise(u: Tensor, slopes: Tensor) -> Tensor:
    """Compute f(u) = sum_s |c_s| clip(u - b_s, 0, d), with b_s = s d and d = 100 / S: continuous, and non-decreasing.

    Args:
        u: -log p, float [...], 0 or more.
        slopes: c, float [S].

    Examples:
        >>> import torch
        >>> from sparsify.parts.h_calibration import piecewise
        >>> piecewise(torch.tensor([10.0, 60.0]), torch.tensor([2.0, 0.5])).tolist()
        [20.0, 105.0]
    """
    width = HIGHEST / len(slopes)
    rates, u = slopes.abs(), u.clamp(0, HIGHEST)
    segment = (u / width).long().clamp_max(len(slopes) - 1)
    before = width * (rates.cumsum(0) - rates)  # f(b_s)
    return before[segment] + rates[segment] * (u - width * segment)


def clustered(values: Tensor, count: int = CLUSTERS) -> Tensor:
    """Group numbers into clusters by Lloyd's algorithm in one dimension; returns the cluster of each, int64 [N], ascending.

    The centres begin at equal distances between the smallest and the largest value. A cluster may end up empty.

    Args:
        values: float64 [N], N >= 1, ascending.
        count: number of clusters.

    Examples:
        >>> import torch
        >>> from sparsify.parts.h_calibration import clustered
        >>> clustered(torch.tensor([0.0, 0.1, 0.8, 0.9, 1.0], dtype=torch.float64), 2).tolist()
        [0, 0, 1, 1, 1]
    """
    values = values.detach()
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
    centres = torch.linspace(float(values[0]), float(values[-1]), count, dtype=values.dtype)
    edges = values.new_zeros(0)
    for _ in range(LLOYD):
        middles = (centres[1:] + centres[:-1]) / 2
        edges = torch.cat([torch.tensor([0]), torch.searchsorted(values, middles), torch.tensor([len(values)])])
        sizes = edges.diff()
        moved = torch.where(sizes > 0, sums[edges].diff() / sizes.clamp_min(1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return torch.repeat_interleave(edges.diff())


def h_loss(probabilities: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """Compute the loss of h-calibration.

    For each class e, the probabilities of the samples that are not of class e are sorted, all classes together. The error
    (probability - 1 for the right class, and else 0) is averaged over windows of 201 neighbours, beyond the ends with zeros; its
    absolute value beyond 1e-20 counts. It is averaged in 15 clusters of the probabilities, over the clusters, and over e.

    Args:
        probabilities: float64 [N, K].
        labels: int64 [N].
        classes: the classes e; None: all.

    Returns:
        The loss, []; 0 if no sample remains.
    """
    n, count = probabilities.shape
    flat = probabilities.flatten()
    order = flat.detach().argsort(stable=True)
    errors = probabilities - torch.nn.functional.one_hot(labels, count)
    ranked, known = errors.flatten()[order], flat.detach()[order]
    owner = labels[:, None].expand(n, count).flatten()[order]
    found = list[Tensor]()
    for number in range(count) if classes is None else classes:
        kept = (owner != number).nonzero()[:, 0]
        if not len(kept):
            continue
        excess = (averaged(ranked[kept]).abs() - TOLERATED).relu()
        groups = clustered(known[kept])
        sizes = groups.bincount(minlength=CLUSTERS)
        means = excess.new_zeros(CLUSTERS).index_add(0, groups, excess) / sizes.clamp_min(1)
        found.append(means.sum() / (sizes > 0).sum())
    return FACTOR * torch.stack(found).mean() if found else probabilities.sum() * 0


def averaged(errors: Tensor, window: int = WINDOW) -> Tensor:
    """Average over a window of neighbours on both sides of each number; beyond the ends are zeros.

    Args:
        errors: float64 [N].
        window: an odd number.

    Examples:
        >>> import torch
        >>> from sparsify.parts.h_calibration import averaged
        >>> averaged(torch.tensor([3.0, 0.0, 6.0]), 3).tolist()
        [1.0, 3.0, 2.0]
    """
    sums = torch.cat([errors.new_zeros(1), errors.cumsum(0)])
    place = torch.arange(len(errors))
    reach = window // 2
    return (sums[(place + reach + 1).clamp_max(len(errors))] - sums[(place - reach).clamp_min(0)]) / window


def fit_slopes(logits: Tensor, labels: Tensor) -> Slopes:
    """Fit the map of h-calibration, softmax(-f(-log p)).

    One sample in five, drawn at random, is kept apart. The fit begins with the temperature T of the other samples, as slopes 1 / T, and
    lowers their loss by Adam (Kingma and Ba 2015, arXiv:1412.6980); the slopes are those with the lowest NLL of the samples apart. The
    same is done for 1, 10 and 50 segments, and the same samples choose among them. If no step was better than T, the slopes are those of
    the temperature of all samples.

    The time is bounded: a fit has at most 200 steps; a step sorts at most 2^17 probabilities, of samples drawn at random, and averages
    at most 2^18, of classes e drawn at random. With 1000 classes, a step has 131 samples and 2 classes. Draws have a seed of their own.

    Args:
        logits: float [N, K], finite, or -inf for a class that is ruled out.
        labels: int64 [N], 0 to K - 1.

    Raises:
        ValueError: If the data are empty, hold NaN or +inf, or do not determine a temperature.
    """
    z = checked(logits, labels)
    whole = fit_temperature(z, labels)
    draws = torch.Generator().manual_seed(0)
    apart = torch.zeros(len(z), dtype=torch.bool)
    apart[torch.randperm(len(z), generator=draws)[: -(-len(z) // APART)]] = True
    u, right = -z.log_softmax(1), labels
    held = u[apart], right[apart]
    try:
        temperature = fit_temperature(z[~apart], right[~apart])
    except ValueError:
        after = _nll(*held, _even(whole))
        return Slopes(_even(whole), 1, 0, after, after)
    found = [_fitted((u[~apart], right[~apart]), held, count, temperature, draws) for count in SEGMENTS]
    best = min(found, key=lambda one: one.nll_after)
    return best if best.steps else dataclasses.replace(best, slopes=_even(whole))


def _fitted(
    given: tuple[Tensor, Tensor],
    apart: tuple[Tensor, Tensor],
    segments: int,
    temperature: float,
    draws: torch.Generator,
) -> Slopes:
    """Fit a number of segments to -log p and labels, and stop by those of the samples apart."""
    (u, labels), (n, classes) = given, given[0].shape
    samples = min(n, max(1, ENTRIES // classes))
    most = min(classes, max(1, WORK // (samples * classes)))
    logs = torch.full((segments,), -math.log(temperature), dtype=torch.float64)
    mean, square = torch.zeros_like(logs), torch.zeros_like(logs)
    before = _nll(*apart, _even(temperature))
    best = Slopes(_even(temperature), segments, 0, before, before)
    for step in range(1, STEPS + 1):
        rows = torch.randperm(n, generator=draws)[:samples] if samples < n else torch.arange(n)
        left_out = torch.randperm(classes, generator=draws)[:most].tolist() if most < classes else None
        logs = logs.detach().requires_grad_()
        table = (-piecewise(u[rows], logs.exp())).softmax(1)
        (gradient,) = torch.autograd.grad(h_loss(table, labels[rows], left_out), logs)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        size = (square / (1 - 0.999**step)).sqrt() + 1e-8
        logs = logs.detach() - RATE / (1 - 0.9**step) * mean / size
        if step % EVERY:
            continue
        slopes = logs.exp().repeat_interleave(SEGMENTS[-1] // segments)
        after = _nll(*apart, slopes)
        if after < best.nll_after:
            best = Slopes(slopes, segments, step, before, after)
        elif step - best.steps >= PATIENCE:
            break
    return best


def _even(temperature: float) -> Tensor:
    return torch.full((SEGMENTS[-1],), 1 / temperature, dtype=torch.float64)


def _nll(u: Tensor, labels: Tensor, slopes: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(-piecewise(u, slopes), labels))
