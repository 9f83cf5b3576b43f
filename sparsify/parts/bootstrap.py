"""The paired bootstrap: an interval for the difference of two figures on the same samples. The figures need not be means over samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Figure = Callable[[Tensor], Tensor]
"""Maps how often each of N samples was drawn in each of B draws, float64 [B, N], to the figure of each draw, float64 [B]."""
RESAMPLES, FEWER_RESAMPLES = 1000, 200
"""Default number of draws for an interval; figures that are computed anew for each draw (`of_rows`) use fewer."""
AT_ONCE = 2**21
"""How many numbers of the table [draws, samples] are held in memory at a time."""


def of_rows(measure: Callable[[Tensor], float]) -> Figure:
    """Make a `Figure` from any function of samples. The function is called anew for each draw, so it is slow.

    Args:
        measure: maps the indices of the drawn samples, int64 [N], ascending and with repetitions, to the figure. If it raises, the draw
            has no figure (a draw may leave out a class that the figure needs); its warnings are silenced.
    """

    def figure(draws: Tensor) -> Tensor:
        rows = torch.arange(draws.shape[1])
        found = [_known(measure, rows.repeat_interleave(counts.long())) for counts in draws]
        return torch.tensor(found, dtype=torch.float64)

    return figure


def _known(measure: Callable[[Tensor], float], rows: Tensor) -> float:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(measure(rows))
    except Exception:  # the user's code, which may raise anything on a draw of its data
        return float("nan")


def bootstrap_difference(
    values: Figure, base: Figure, samples: int, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Compute an interval of ``values - base`` from its quantiles over draws of the samples (Efron and Tibshirani 1993, chapter 13).

    Both figures use the same draws. The same arguments give the same bits.

    Args:
        values, base: the figure of each of two models.
        samples: N, at least 1. The samples must be independent.
        confidence: probability that the interval should cover, in (0, 1).
        resamples: number of draws of N samples.
        seed: seed of the draws.

    Returns:
        Both ends of the interval; None if fewer than half of the draws define both figures, for example because a class is rare.
    """
    generator, found = torch.Generator().manual_seed(seed), list[Tensor]()
    for count in torch.arange(resamples).split(max(1, AT_ONCE // samples)):
        rows = torch.randint(samples, (len(count), samples), generator=generator)
        draws = torch.zeros(len(count), samples, dtype=torch.float64)
        draws.scatter_add_(1, rows, torch.ones_like(draws))
        found.append(values(draws) - base(draws))
    differences = torch.cat(found)
    differences = differences[differences.isfinite()]
    if 2 * len(differences) < resamples:
        return None
    ends = differences.quantile(torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64))
    return float(ends[0]), float(ends[1])


def r2(output: Tensor, target: Tensor) -> Figure:
    """Make the figure R2 over all values of [N, ...], relative to the mean of each output (see `sparsify.tasks.Regression`).

    Args:
        output, target: float64 [N, ...], both of the same shape.
    """
    errors = ((output - target) ** 2).flatten(1).sum(1) if output.ndim > 1 else (output - target) ** 2
    values = target.reshape(len(target), -1)
    values = values - values.mean(0)  # R2 does not depend on this shift, but its rounding does
    squares = (values**2).sum(1)

    def figure(draws: Tensor) -> Tensor:
        spread = draws @ squares - ((draws @ values) ** 2).sum(1) / draws.sum(1)
        return 1 - draws @ errors / spread.where(spread > 0, torch.nan)

    return figure


def share(hits: Tensor, judged: Tensor) -> Figure:
    """Make the figure ``sum(hits) / sum(judged)``. Each is float64 [N]: how many hits, and how many judged things, a sample has."""
    return lambda draws: draws @ hits / (draws @ judged)


def mean_iou(both: Tensor, either: Tensor) -> Figure:
    """Make the figure mean IoU over the classes that occur. ``both`` and ``either`` are float64 [N, K]: positions per sample and class."""

    def figure(draws: Tensor) -> Tensor:
        met, union = draws @ both, draws @ either
        seen = union > 0
        return (met / union.where(seen, 1.0)).sum(1) / seen.sum(1)

    return figure


def auroc(scores: Tensor, yes: Tensor) -> Figure:
    """Make the figure AUROC: the probability that a positive sample scores higher than a negative one. Ties count half.

    Args:
        scores: float [N], finite.
        yes: bool [N], True for positive samples.
    """
    _, place = scores.unique(return_inverse=True)
    groups = int(place.max()) + 1

    def figure(draws: Tensor) -> Tensor:
        positive, negative = (_grouped(draws * mine, place, groups) for mine in (yes, ~yes))
        below = negative.cumsum(1) - negative / 2
        return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))

    return figure


def mean_average_precision(scores: Tensor, yes: Tensor) -> Figure:
    """Make the figure mAP: the mean of `sparsify.parts.metrics.aupr` over the labels that occur in a draw.

    Args:
        scores: float [N, K], finite.
        yes: bool [N, K], True if the sample has the label.
    """
    places = [(-scores[:, label]).unique(return_inverse=True)[1] for label in range(scores.shape[1])]

    def figure(draws: Tensor) -> Tensor:
        each = [_precision(draws, place, yes[:, label]) for label, place in enumerate(places)]
        return torch.stack(each).nanmean(0)

    return figure


def _precision(draws: Tensor, place: Tensor, yes: Tensor) -> Tensor:
    """Compute the average precision of one label; NaN for draws in which no sample has it."""
    groups = int(place.max()) + 1
    hits, counts = _grouped(draws * yes, place, groups), _grouped(draws, place, groups)
    precision = hits.cumsum(1) / counts.cumsum(1).clamp_min(1)
    return (hits * precision).sum(1) / hits.sum(1)


def _grouped(draws: Tensor, place: Tensor, groups: int) -> Tensor:
    """Sum draws [B, N] over the samples that share a place; returns [B, groups]."""
    return draws.new_zeros(len(draws), groups).index_add_(1, place, draws)
