"""The paired bootstrap: an interval for the difference of two figures on the same samples. The figures need not be means over samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from sparsify.figures.arrays import Array, ArrayLike

Figure = Callable[[Array], Array]
"""Maps how often each of N samples was drawn in each of B draws, float64 [B, N], to the figure of each draw, float64 [B]."""
RESAMPLES, FEWER_RESAMPLES = 1000, 200
"""Default number of draws for an interval; figures that are computed anew for each draw (`of_rows`) use fewer."""
AT_ONCE = 2**21
"""How many numbers of the table [draws, samples] are held in memory at a time."""


def of_rows(measure: Callable[[Array], float]) -> Figure:
    """Make a `Figure` from any function of samples. The function is called anew for each draw, so it is slow.

    Args:
        measure: maps the indices of the drawn samples, int64 [N], ascending and with repetitions, to the figure. If it raises, the draw
            has no figure (a draw may leave out a class that the figure needs); its warnings are silenced.
    """

    def figure(draws: Array) -> Array:
        rows = np.arange(draws.shape[1])
        return np.array([_known(measure, rows.repeat(counts.astype(np.int64))) for counts in draws])

    return figure


def measured(figure: Figure, samples: int | Sequence[int]) -> float:
    """Return a figure of N samples, each taken once."""
    return float(figure(np.ones((1, samples if isinstance(samples, int) else sum(samples))))[0])


def _known(measure: Callable[[Array], float], rows: Array) -> float:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(measure(rows))
    except Exception:  # the user's code, which may raise anything on a draw of its data
        return float("nan")


def bootstrap_difference(
    values: Figure,
    base: Figure,
    samples: int | Sequence[int],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Compute an interval of ``values - base`` from its quantiles over draws of the samples (Efron and Tibshirani 1993, chapter 13).

    Both figures use the same draws. The same arguments give the same bits.

    Args:
        values: the figure of one model.
        base: the figure of the other.
        samples: N, at least 1; or the sizes of several parts, as for `bootstrap_interval`. The samples must be independent.
        confidence: probability that the interval should cover, in (0, 1).
        resamples: number of draws of N samples.
        seed: seed of the draws, which are those of the Mersenne Twister.

    Returns:
        Both ends of the interval; None if fewer than half of the draws define both figures, for example because a class is rare.
    """
    return bootstrap_interval(
        lambda draws: values(draws) - base(draws), samples, confidence=confidence, resamples=resamples, seed=seed
    )


def bootstrap_interval(
    values: Figure,
    samples: int | Sequence[int],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Compute an interval of one figure; see `bootstrap_difference`, whose draws these are.

    Args:
        values: the figure.
        samples: N, at least 1; or the sizes of several parts, each of which is drawn anew from itself, such as test inputs and
            out-of-distribution inputs. The figure then gets the draws of all parts side by side.
        confidence: as for `bootstrap_difference`.
        resamples: as for `bootstrap_difference`.
        seed: as for `bootstrap_difference`.

    Returns:
        Both ends of the interval; None if fewer than half of the draws define the figure.
    """
    parts = [samples] if isinstance(samples, int) else list(samples)
    generator, found, at_once = np.random.RandomState(seed), list[Array](), max(1, AT_ONCE // sum(parts))
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        found.append(values(np.concatenate([_draws(generator, count, part) for part in parts], axis=1)))
    figures = np.concatenate(found)
    figures = figures[np.isfinite(figures)]
    if 2 * len(figures) < resamples:
        return None
    low, high = np.quantile(figures, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _draws(generator: np.random.RandomState, count: int, samples: int) -> Array:
    """Return how often each of N samples comes up in each of B draws of N, float64 [B, N]."""
    rows = generator.randint(0, 2**32, size=(count, samples), dtype=np.uint32) % np.uint32(samples)
    return np.stack([np.bincount(row, minlength=samples) for row in rows]).astype(np.float64)


def r2(output: ArrayLike, target: ArrayLike) -> Figure:
    """Make the figure R2 over all values of [N, ...], relative to the mean of each output (see `sparsify.tasks.Regression`).

    Args:
        output: float64 [N, ...].
        target: float64, of the same shape.
    """
    wanted = np.asarray(target).reshape(len(np.asarray(target)), -1)
    errors = ((np.asarray(output).reshape(wanted.shape) - wanted) ** 2).sum(1)
    values = wanted - wanted.mean(0)  # R2 does not depend on this shift, but its rounding does
    squares = (values**2).sum(1)

    def figure(draws: Array) -> Array:
        spread = draws @ squares - ((draws @ values) ** 2).sum(1) / draws.sum(1)
        return 1 - draws @ errors / np.where(spread > 0, spread, np.nan)

    return figure


def share(hits: ArrayLike, judged: ArrayLike) -> Figure:
    """Make the figure ``sum(hits) / sum(judged)``. Each is float64 [N]: how many hits, and how many judged things, a sample has."""
    counted, of = np.asarray(hits, np.float64), np.asarray(judged, np.float64)

    def figure(draws: Array) -> Array:
        total = draws @ of
        return draws @ counted / np.where(total != 0, total, np.nan)

    return figure


def mean_iou(both: ArrayLike, either: ArrayLike) -> Figure:
    """Make the figure mean IoU over the classes that occur. ``both`` and ``either`` are float64 [N, K]: positions per sample and class."""

    positions, unions = np.asarray(both), np.asarray(either)

    def figure(draws: Array) -> Array:
        met, union = draws @ positions, draws @ unions
        seen = union > 0
        count = seen.sum(1)
        return (met / np.where(seen, union, 1.0)).sum(1) / np.where(count > 0, count, np.nan)

    return figure


def auroc(scores: ArrayLike, yes: ArrayLike) -> Figure:
    """Make the figure AUROC: the probability that a positive sample scores higher than a negative one. Ties count half.

    Args:
        scores: float [N], finite.
        yes: bool [N], True for positive samples.
    """
    grouped, hit = _grouping(np.asarray(scores)), np.asarray(yes)

    def figure(draws: Array) -> Array:
        positive, negative = grouped(draws * hit), grouped(draws * ~hit)
        below = negative.cumsum(1) - negative / 2
        pairs = positive.sum(1) * negative.sum(1)
        return (positive * below).sum(1) / np.where(pairs > 0, pairs, np.nan)

    return figure


def mean_average_precision(scores: ArrayLike, yes: ArrayLike) -> Figure:
    """Make the figure mAP: the mean of `sparsify.figures.metrics.aupr` over the labels that occur in a draw.

    Args:
        scores: float [N, K], finite.
        yes: bool [N, K], True if the sample has the label.
    """
    table, hits = np.asarray(scores), np.asarray(yes)
    places = [_grouping(-table[:, label]) for label in range(table.shape[1])]

    def figure(draws: Array) -> Array:
        each = np.stack([_precision(draws, grouped, hits[:, label]) for label, grouped in enumerate(places)])
        known = ~np.isnan(each)
        count = known.sum(0)
        return np.where(known, each, 0.0).sum(0) / np.where(count > 0, count, np.nan)

    return figure


def _precision(draws: Array, grouped: Callable[[Array], Array], yes: Array) -> Array:
    """Compute the average precision of one label; NaN for draws in which no sample has it."""
    hits, counts = grouped(draws * yes), grouped(draws)
    total = hits.sum(1)
    return (hits * (hits.cumsum(1) / counts.cumsum(1).clip(1))).sum(1) / np.where(total > 0, total, np.nan)


def _grouping(scores: Array) -> Callable[[Array], Array]:
    """Return a function that sums draws [B, N] over the samples of each distinct score, in ascending order; it returns [B, groups]."""
    order = scores.argsort(kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return lambda draws: np.add.reduceat(draws[:, order], starts, axis=1)
