"""Decides whether an int8 file is accepted: by the size of its errors, its decisions per class, and its accuracy.

Each output of a file is judged separately, depending on its shape and type. A file is accepted if all its outputs are.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import numpy as np
import torch

from sparsify.tasks import Task

Array = np.ndarray
Counts = tuple[int, int, int, int]
"""Numbers of decisions, of equal decisions, of clear decisions, and of equal clear decisions."""
MOST_ERROR = 0.15
"""Bound of the root mean square error over all units of an output, relative to their standard deviation over the samples."""
MOST_UNIT_ERROR = 0.4
"""The same bound for a single unit or channel; the error of one that has become constant is 1."""
MOST_SCORES_ERROR, MOST_SCORE_ERROR = 0.3, 0.75
"""The same two bounds for scores of classes, whose decisions are judged as well."""
LEAST_SPREAD = 0.25
"""Units whose deviation is below this share of the median unit's are not judged separately, in scores and among more than `FEW` units."""
FEW = 16
"""Largest number of units of which each may have its own meaning, such as the targets of a regression."""
STILL = 1e-5
"""Units whose deviation relative to their size is below this are constant: they are judged by their value."""
MOST_STILL_ERROR = 0.1
"""Bound of the error of a constant unit, relative to the larger of its value and the deviation of the other units."""
CLEAR = 4.0
"""A decision is clear if its margin is more than this many typical errors."""
LEAST_AGREEMENT = 0.95
"""Smallest share of the clear decisions, and of whole numbers, that must equal the program's."""
LEAST_CLASS_AGREEMENT = 0.9
"""The same for each class; a file is rejected if the upper end of the 95 % interval is below."""
LEAST_SIZE = 1e-30
"""Errors of an output that is 0 throughout are relative to this."""
MANY = 10
"""A class is judged separately if it occurs this often, among pixels, tokens, signs and whole numbers; always in scores [N, K]."""
CHANCE = 0.01
"""A loss of right answers above `MOST_LOSS` is rejected if its probability by chance is below this."""
EXACT = 1000
"""Largest number of changed answers for which that probability is summed exactly; above it, a normal approximation is used."""
MOST_LOSS = 0.01
MOST_CLASS_LOSS = 0.1
"""Largest net loss of right answers, as a share of all samples, and of the samples of a class."""


@dataclass(frozen=True)
class Agreement:
    """The agreement of an output of a file with the program's on held-out samples.

    Attributes:
        decisions: number of compared decisions of the task (per sample, label or position); 0 if the output decides nothing. Without a
            task: the number of samples whose argmax was compared, for scores [N, K].
        agreed: number of decisions that equal the program's.
        clear: number of decisions whose margin is above `CLEAR` typical errors.
        clear_agreed: number of clear decisions that equal the program's.
        largest_error: largest error, relative to the largest magnitude of the output.
        error: root mean square error relative to the standard deviation of the output over the samples, or to its root mean square if
            there is one sample; for whole numbers, the share of values that differ.
        refused: the reason why the output is not accepted; empty if it is.
    """

    decisions: int
    agreed: int
    clear: int
    clear_agreed: int
    largest_error: float
    error: float
    refused: str


def judge(
    want: Array,
    have: Array,
    labels: Array | None = None,
    *,
    scores: bool = False,
    by_sample: bool = True,
    task: Task | None = None,
    threshold: float = 0.0,
) -> Agreement:
    """Compare an output of a file, of any shape, with the program's.

    With a task, this compares its decisions (`sparsify.tasks.Task.scores`) per label and class, and how many of them are right. If the
    task decides nothing, it compares only errors relative to the deviation over the samples. Without a task, the shape of the output
    determines which decisions are compared.

    Args:
        want: the output of the program, finite or -inf for classes that are excluded.
        have: the output of the file, of the same shape.
        labels: int [N], or the targets of the task, to compare how many decisions are right; not compared if None or of another shape.
        scores: the values are known to be scores of classes. This is also assumed if ``labels`` are whole numbers.
        by_sample: the first dimension counts samples. If not, all values are taken as samples of one unit.
        task: what the output means; None: unknown.
        threshold: value above which a yes/no task decides yes: 0 for logits, 0.5 for probabilities.
    """
    if want.shape != have.shape:
        return _refused(f"its shape is {list(have.shape)}, expected {list(want.shape)}")
    if not want.size:
        return Agreement(0, 0, 0, 0, 0.0, 0.0, "")
    if not by_sample:
        want, have = want.reshape(-1), have.reshape(-1)
    if not np.issubdtype(want.dtype, np.floating):
        return _whole_numbers(want, have)
    known = np.isfinite(want)
    if not (np.isfinite(have[known]).all() and np.array_equal(have[~known], want[~known], equal_nan=True)):
        return _refused("its values are infinite or NaN where the program's are not")
    table, found = (np.where(known, values, 0.0).astype(np.float64) for values in (want, have))
    largest = float(np.abs(found - table).max()) / max(float(np.abs(table).max()), LEAST_SIZE)
    if by_sample and len(want) < 2:
        error = math.sqrt(((found - table) ** 2).mean()) / max(math.sqrt((table**2).mean()), LEAST_SIZE)
        return Agreement(0, 0, 0, 0, largest, error, "its comparison needs at least two held-out samples")
    if task is None:
        scores = scores or (labels is not None and np.issubdtype(labels.dtype, np.integer))
    else:
        scores = by_sample and task.scores(torch.from_numpy(table)) is not None
    whole, reason = _by_error(table, found, scores=scores)
    if not by_sample:
        return Agreement(0, 0, 0, 0, largest, whole, reason)
    if task is not None:
        counts, by_class = _by_task(want - threshold, have - threshold, labels, task)
        return Agreement(*counts, largest, whole, by_class or reason)
    if want.ndim == 1 or want.shape[1:] == (1,):  # one score, whose sign may decide between two classes
        want, have = (np.stack([0.0 * v.reshape(-1), v.reshape(-1)], axis=1) for v in (table, found))
        _, by_class = _decisions(want, have, labels, least=MANY)
        return Agreement(0, 0, 0, 0, largest, whole, reason or by_class)
    decisions, by_class = (0, 0, 0, 0), ""
    for axis in dict.fromkeys((1, want.ndim - 1)):
        if want.shape[axis] > 1:
            first, second = (np.moveaxis(v, axis, -1).reshape(-1, v.shape[axis]) for v in (want, have))
            given = np.moveaxis(want, axis, -1).shape[:-1]
            mine = labels.reshape(-1) if labels is not None and labels.shape == given else None
            counts, text = _decisions(first, second, mine, least=1 if want.ndim == 2 else MANY)
            decisions, by_class = counts if want.ndim == 2 else decisions, by_class or text
    return Agreement(*decisions, largest, whole, (by_class or reason) if want.ndim == 2 else (reason or by_class))


def _by_task(want: Array, have: Array, labels: Array | None, task: Task) -> tuple[Counts, str]:
    """Return the counts of `_decisions` for the decisions of a task, and the problem found; decisions without a target are left out."""
    outputs = [torch.from_numpy(np.ascontiguousarray(values, np.float64)) for values in (want, have)]
    first, second = (task.scores(output) for output in outputs)
    if first is None or second is None:
        return (0, 0, 0, 0), ""
    about = task.about(outputs[0])
    answers = None if labels is None else task.answers(torch.from_numpy(np.ascontiguousarray(labels)))
    known = torch.ones(len(first), dtype=torch.bool)
    if answers is not None and len(answers) == len(first):
        known = answers >= 0
    if not bool(known.any()):
        return (0, 0, 0, 0), ""
    mine = None if answers is None or len(answers) != len(first) else answers[known].numpy()
    kinds = None if about is None else about[known].numpy()
    least = 1 if task.link == "softmax" and len(first) == len(want) else MANY
    return _decisions(first[known].numpy(), second[known].numpy(), mine, least=least, about=kinds)


def _refused(reason: str) -> Agreement:
    return Agreement(0, 0, 0, 0, math.inf, math.inf, reason)


def _whole_numbers(want: Array, have: Array) -> Agreement:
    """Compare whole numbers and booleans, such as classes, ranks, counts and masks, for equality."""
    want, have = want.reshape(-1), have.reshape(-1)
    reason = _by_class(want, want == have, "values", least=MANY, named=_Names()) if want.size else ""
    return Agreement(0, 0, 0, 0, float((want != have).any()), float((want != have).mean()), reason)


def _by_error(table: Array, found: Array, *, scores: bool) -> tuple[float, str]:
    """Return the error over all units relative to their standard deviation, and the problem found, if any."""
    most, most_unit = (MOST_SCORES_ERROR, MOST_SCORE_ERROR) if scores else (MOST_ERROR, MOST_UNIT_ERROR)
    shape, table, found = table.shape, table.reshape(len(table), -1), found.reshape(len(found), -1)
    spread, off = table.std(axis=0), np.sqrt(((found - table) ** 2).mean(axis=0))
    size = np.abs(table).max(axis=0)
    moves = spread > STILL * size
    typical = float(np.sqrt((spread[moves] ** 2).mean())) if moves.any() else float(np.sqrt((table**2).mean()))
    whole = float(np.sqrt((off[moves] ** 2).mean())) / max(typical, LEAST_SIZE) if moves.any() else 0.0
    if not moves.any():
        whole = float(np.sqrt((off**2).mean())) / max(typical, LEAST_SIZE)
    if moves.any() and whole > most:
        return whole, f"its error is {whole:.2f} of its standard deviation, above the bound of {most}"
    still = ~moves & (off > MOST_STILL_ERROR * np.maximum(size, typical))
    if still.any():
        unit = int(np.argmax(still))
        return whole, (
            f"unit {unit} is {table[0, unit]:.3g} for all samples, and its error is {off[unit]:.3g}, above the bound of "
            f"{MOST_STILL_ERROR * max(float(size[unit]), typical):.3g}"
        )
    least = 0.0 if len(spread) <= FEW and not scores else LEAST_SPREAD * float(np.median(spread))
    wrong = moves & (spread >= least) & (off > most_unit * spread)
    if wrong.any():
        unit = int(np.argmax(np.where(wrong, off / np.maximum(spread, LEAST_SIZE), 0.0)))
        share = off[unit] / spread[unit]
        return (
            whole,
            f"the error of unit {unit} is {share:.2f} of its standard deviation, above the bound of {most_unit}",
        )
    return whole, _by_channel(table.reshape(shape), found.reshape(shape), most_unit)


def _by_channel(table: Array, found: Array, most: float) -> str:
    """Return the problem found in channels, positions or tokens: units with the same index in one dimension, taken together."""
    for axis in range(1, table.ndim if table.ndim > 2 else 0):
        others = tuple(place for place in range(table.ndim) if place != axis)
        spread, off = table.std(axis=others), np.sqrt(((found - table) ** 2).mean(axis=others))
        wrong = (off > most * spread) & (spread >= LEAST_SPREAD * np.median(spread)) & (spread > 0)
        if wrong.any():
            index = int(np.argmax(np.where(wrong, off / np.maximum(spread, LEAST_SIZE), 0.0)))
            share = off[index] / spread[index]
            return f"the error of index {index} of dimension {axis} is {share:.2f} of its standard deviation, above the bound of {most}"
    return ""


def _decisions(
    want: Array, have: Array, labels: Array | None, *, least: int, about: Array | None = None
) -> tuple[Counts, str]:
    """Compare the decisions of scores [N, K]; return their counts and the problem found, if any.

    Args:
        want, have: scores of the program and of the file.
        labels: int [N], the right classes.
        least: number of occurrences from which a class is judged separately.
        about: int [N], the label that each decision is about; decisions about different labels are judged separately.
    """
    known = np.isfinite(want)
    error = np.where(known, have, 0.0) - np.where(known, want, 0.0)
    first, second = want.argmax(1), have.argmax(1)
    ordered = np.partition(want, -2, axis=1)
    centred = error - error.mean(axis=1, keepdims=True)
    clear = ordered[:, -1] - ordered[:, -2] > CLEAR * float(np.median(np.abs(centred).max(axis=1)))
    same, named = first == second, _Names(want.shape[1], about)
    first = named.kinds(first)
    reason = _by_class(first[clear], same[clear], "clear decisions", least=least, named=named) if clear.any() else ""
    if labels is not None and labels.shape == first.shape and np.issubdtype(labels.dtype, np.integer):
        right = want.argmax(1) == labels, have.argmax(1) == labels
        reason = reason or _by_labels(*right, named.kinds(labels), named)
    return (len(same), int(same.sum()), int(clear.sum()), int((same & clear).sum())), reason


@dataclass(frozen=True)
class _Names:
    """Numbers classes so that those of different labels differ, and names them for messages."""

    columns: int = 1
    about: Array | None = None

    def kinds(self, choices: Array) -> Array:
        return choices if self.about is None else choices + self.about * self.columns

    def __call__(self, kind: int) -> str:
        if self.about is None:
            return f"class {kind}"
        return f"answer {kind % self.columns} of label {kind // self.columns}"


def _by_class(first: Array, same: Array, what: str, *, least: int, named: _Names) -> str:
    """Return the problem found in a class that occurs at least ``least`` times, or in all decisions together."""
    kinds, places, counts = np.unique(first, return_inverse=True, return_counts=True)
    found = np.bincount(places, weights=same)
    for kind, count, hits in zip(kinds, counts, found, strict=True):
        if count >= least and _upper(int(hits), int(count)) < LEAST_CLASS_AGREEMENT:
            return f"{int(hits)} of {count} {what} for {named(kind)} equal the program's, which is too few"
    hits = int(found.sum())
    return (
        ""
        if hits >= LEAST_AGREEMENT * len(first)
        else f"{hits} of {len(first)} {what} equal the program's, which is too few"
    )


def _by_labels(before: Array, after: Array, labels: Array, named: _Names) -> str:
    for kind in np.unique(labels):
        mine = labels == kind
        had, has = int(before[mine].sum()), int(after[mine].sum())
        if (had > 1 and has == 0) or _lost(before[mine], after[mine], MOST_CLASS_LOSS):
            return f"it is right for {has} of {int(mine.sum())} samples of {named(kind)}, the program for {had}"
    if _lost(before, after, MOST_LOSS):
        return f"its accuracy is {after.mean():.4f}, that of the program {before.mean():.4f}"
    return ""


def _lost(before: Array, after: Array, most: float) -> bool:
    """Return whether the net loss of right answers is above ``most`` of the samples and unlikely by chance."""
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    if lost - gained <= most * len(before):
        return False
    count = lost + gained
    if count > EXACT:
        return (lost - gained - 1) / math.sqrt(count) > statistics.NormalDist().inv_cdf(1 - CHANCE)
    return sum(math.comb(count, k) for k in range(lost, count + 1)) / 2**count < CHANCE


def _upper(hits: int, count: int) -> float:
    """Return the upper end of Wilson's 95 % interval of a share."""
    z2 = 1.96**2
    share = hits / count
    middle = share + z2 / (2 * count)
    return (middle + math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2)))) / (1 + z2 / count)
