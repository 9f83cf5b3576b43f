"""Whether a file in integers may stand in for the program: the size of its errors, its decisions class by class, and what it gets right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
MOST_ERROR = 0.3
"""Root mean square error over all outputs, relative to their standard deviation over the samples."""
MOST_UNIT_ERROR = 0.75
"""The same of a single output; one that has become constant has 1."""
LEAST_SPREAD = 0.25
"""Outputs that vary less than this share of the median output are judged with the others only."""
CLEAR = 4.0
"""A decision is clear where the margin is this many typical errors."""
LEAST_AGREEMENT = 0.95
"""Share of the clear decisions that have to be the program's."""
LEAST_CLASS_AGREEMENT = 0.9
"""The same of each class; refused where even the upper end of the 95 % interval lies below."""
CHANCE = 0.01
"""Losses of right answers that are as unlikely as this by chance are refused, if they are more than `MOST_LOSS`."""
MOST_LOSS = 0.01
MOST_CLASS_LOSS = 0.1
"""Share of the samples, and of those of a class, whose right answer may be lost on balance."""


@dataclass(frozen=True)
class Agreement:
    """How a file agrees with the program on held-out samples.

    Attributes:
        decisions: samples whose argmax was compared; 0 where the outputs are not scores of classes, [N, K].
        agreed: those whose argmax is the program's.
        clear: samples whose margin is `CLEAR` typical errors or more.
        clear_agreed: those of them whose argmax is the program's.
        largest_error: of the outputs, relative to their largest magnitude.
        error: root mean square error relative to the standard deviation of the outputs over the samples.
        refused: why the file is not good enough, or "".
    """

    decisions: int
    agreed: int
    clear: int
    clear_agreed: int
    largest_error: float
    error: float
    refused: str


def judge(want: Array, have: Array, labels: Array | None = None) -> Agreement:
    """Compare the outputs of a file, [N, ...] of any shape, with the program's.

    Args:
        want: the program's, finite or -inf for classes that are excluded.
        have: the file's, of the same shape.
        labels: int [N], to compare what both get right; None, or of another shape: it is not compared.
    """
    if want.shape != have.shape:
        return Agreement(0, 0, 0, 0, math.inf, math.inf, f"its outputs have shape {have.shape}, not {want.shape}")
    known = np.isfinite(want)
    if not (np.isfinite(have[known]).all() and np.array_equal(have[~known], want[~known], equal_nan=True)):
        return Agreement(0, 0, 0, 0, math.inf, math.inf, "its outputs are infinite or NaN where the program's are not")
    table, found = (np.where(known, values, 0.0).reshape(len(want), -1) for values in (want, have))
    error = found - table
    spread, off = table.std(axis=0), np.sqrt((error**2).mean(axis=0))
    whole = float(np.sqrt((off**2).sum() / max((spread**2).sum(), 1e-30)))
    largest = float(np.abs(error).max(initial=0.0)) / max(float(np.abs(table).max(initial=0.0)), 1e-30)
    by_error = _by_error(spread, off, whole)
    if want.ndim != 2 or want.shape[1] < 2:
        return Agreement(0, 0, 0, 0, largest, whole, by_error)
    first, second = want.argmax(1), have.argmax(1)
    ordered = np.sort(want, axis=1)
    centred = error - error.mean(axis=1, keepdims=True)
    clear = ordered[:, -1] - ordered[:, -2] > CLEAR * float(np.median(np.abs(centred).max(axis=1)))
    reason = _by_class(first[clear], second[clear])
    if labels is not None and labels.shape == first.shape and np.issubdtype(labels.dtype, np.integer):
        reason = reason or _by_labels(first == labels, second == labels, labels)
    same = first == second
    counts = len(same), int(same.sum()), int(clear.sum()), int((same & clear).sum())
    return Agreement(*counts, largest, whole, reason or by_error)


def _by_error(spread: Array, off: Array, whole: float) -> str:
    if whole > MOST_ERROR:
        return f"its outputs are off by {whole:.2f} of their spread, {MOST_ERROR} is allowed"
    judged = spread >= LEAST_SPREAD * np.median(spread)
    wrong = judged & (off > MOST_UNIT_ERROR * spread) & (spread > 0)
    if wrong.any():
        unit = int(np.argmax(np.where(wrong, off / np.maximum(spread, 1e-30), 0.0)))
        return f"output {unit} is off by {off[unit] / spread[unit]:.2f} of its spread, {MOST_UNIT_ERROR} is allowed"
    return ""


def _by_class(first: Array, second: Array) -> str:
    for kind in np.unique(first):
        of_kind = first == kind
        count, same = int(of_kind.sum()), int((second[of_kind] == kind).sum())
        if _upper(same, count) < LEAST_CLASS_AGREEMENT:
            return f"of {count} clear decisions for class {kind} it makes {same}"
    same = int((first == second).sum())
    return "" if same >= LEAST_AGREEMENT * len(first) else f"of {len(first)} clear decisions it makes {same}"


def _by_labels(before: Array, after: Array, labels: Array) -> str:
    for kind in np.unique(labels):
        mine = labels == kind
        had, has = int(before[mine].sum()), int(after[mine].sum())
        if (had > 1 and has == 0) or _lost(before[mine], after[mine], MOST_CLASS_LOSS):
            return f"of {int(mine.sum())} samples of class {kind} it finds {has}, the program {had}"
    if _lost(before, after, MOST_LOSS):
        return f"its accuracy is {after.mean():.4f}, the program's {before.mean():.4f}"
    return ""


def _lost(before: Array, after: Array, most: float) -> bool:
    """Whether more right answers are lost than gained, by more than ``most`` of the samples and more than chance makes likely."""
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    if lost - gained <= most * len(before):
        return False
    count = lost + gained
    return sum(math.comb(count, k) for k in range(lost, count + 1)) / 2**count < CHANCE


def _upper(hits: int, count: int) -> float:
    """Upper end of Wilson's 95 % interval of a share."""
    z2 = 1.96**2
    share = hits / count
    middle = share + z2 / (2 * count)
    return (middle + math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2)))) / (1 + z2 / count)
