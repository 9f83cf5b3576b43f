"""The paired bootstrap: an interval of the difference of two figures of the same samples, for figures that are no mean over samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Figure = Callable[[Tensor], Tensor]
"""A figure of data whose samples are drawn with repetition: from how often each is drawn, float64 [B, N], to float64 [B]."""
RESAMPLES, FEWER_RESAMPLES = 1000, 200
"""Draws of an interval; fewer where each computes a figure anew (`of_rows`)."""
AT_ONCE = 2**21
"""Numbers of the draws that are held at a time."""


def of_rows(measure: Callable[[Tensor], float]) -> Figure:
    """A figure that is known only as a function of samples: it is computed anew for each draw.

    Args:
        measure: from the numbers of the samples drawn, int64 [N], in ascending order, to the figure. What it raises, and what it warns of,
            are its own: a draw may leave out a class that it needs. Such a draw defines no figure.
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
    except Exception:  # code of the user's, which may raise anything on a sample of its data
        return float("nan")


def bootstrap_difference(
    values: Figure, base: Figure, samples: int, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Interval of ``values - base``: quantiles over draws of the samples, the same for both (Efron and Tibshirani 1993, chapter 13).

    The same arguments give the same bits.

    Args:
        values, base: the figure of each of two models.
        samples: N, at least 1, drawn independently.
        confidence: of the interval, in (0, 1).
        resamples: how often N samples are drawn.
        seed: of the draws.

    Returns:
        Both ends; None where fewer than half of the draws define both figures, as where a class is hardly ever drawn.
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
    """R2 over all values of [N, ...], about the mean of each output (`sparsify.tasks.Regression`).

    Args:
        output, target: float64, of one shape.
    """
    errors = ((output - target) ** 2).flatten(1).sum(1) if output.ndim > 1 else (output - target) ** 2
    values = target.reshape(len(target), -1)
    values = values - values.mean(0)  # R2 does not depend on it, its rounding does
    squares = (values**2).sum(1)

    def figure(draws: Tensor) -> Tensor:
        spread = draws @ squares - ((draws @ values) ** 2).sum(1) / draws.sum(1)
        return 1 - draws @ errors / spread.where(spread > 0, torch.nan)

    return figure


def share(hits: Tensor, judged: Tensor) -> Figure:
    """The share of hits among what is judged, each float64 [N]: how many there are of a sample."""
    return lambda draws: draws @ hits / (draws @ judged)


def mean_iou(both: Tensor, either: Tensor) -> Figure:
    """Mean over the classes that come up of intersection over union, each float64 [N, K]: how many positions of a sample there are."""

    def figure(draws: Tensor) -> Tensor:
        met, union = draws @ both, draws @ either
        seen = union > 0
        return (met / union.where(seen, 1.0)).sum(1) / seen.sum(1)

    return figure


def auroc(scores: Tensor, yes: Tensor) -> Figure:
    """Probability that a sample of yes scores higher than one of no; ties count half.

    Args:
        scores: [N], finite.
        yes: bool [N].
    """
    _, place = scores.unique(return_inverse=True)
    groups = int(place.max()) + 1

    def figure(draws: Tensor) -> Tensor:
        positive, negative = (_grouped(draws * mine, place, groups) for mine in (yes, ~yes))
        below = negative.cumsum(1) - negative / 2
        return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))

    return figure


def mean_average_precision(scores: Tensor, yes: Tensor) -> Figure:
    """Mean over the labels that any sample drawn has of `sparsify.parts.metrics.aupr`.

    Args:
        scores: [N, K], finite.
        yes: bool [N, K].
    """
    places = [(-scores[:, label]).unique(return_inverse=True)[1] for label in range(scores.shape[1])]

    def figure(draws: Tensor) -> Tensor:
        each = [_precision(draws, place, yes[:, label]) for label, place in enumerate(places)]
        return torch.stack(each).nanmean(0)

    return figure


def _precision(draws: Tensor, place: Tensor, yes: Tensor) -> Tensor:
    """Average precision of one label; NaN where no sample drawn has it."""
    groups = int(place.max()) + 1
    hits, counts = _grouped(draws * yes, place, groups), _grouped(draws, place, groups)
    precision = hits.cumsum(1) / counts.cumsum(1).clamp_min(1)
    return (hits * precision).sum(1) / hits.sum(1)


def _grouped(draws: Tensor, place: Tensor, groups: int) -> Tensor:
    """Draws [B, N] summed over samples of one place, [B, groups]."""
    return draws.new_zeros(len(draws), groups).index_add_(1, place, draws)
