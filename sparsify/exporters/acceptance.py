"""Whether a file in integers may stand in for the program: the size of its errors, its decisions class by class, and what it gets right.

Every output of a file is judged on its own, by its shape and type. A file is good enough where all of them are.
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
"""Decisions, those agreed, clear ones, those agreed."""
MOST_ERROR = 0.15
"""Root mean square error over all units of an output, relative to their standard deviation over the samples."""
MOST_UNIT_ERROR = 0.4
"""The same of a single unit, or channel; one that has become constant has 1."""
MOST_SCORES_ERROR, MOST_SCORE_ERROR = 0.3, 0.75
"""Both for scores of classes, whose decisions are judged as well."""
LEAST_SPREAD = 0.25
"""Units that vary less than this share of the median unit are judged with the others only, in scores and among more than `FEW`."""
FEW = 16
"""Up to so many units may each mean something of its own, as the targets of a regression do."""
STILL = 1e-5
"""Units that vary less than this, relative to their size, do not depend on the sample: they are judged by their value."""
MOST_STILL_ERROR = 0.1
"""Error of a unit that stands still, relative to its value or to what the other units vary by."""
CLEAR = 4.0
"""A decision is clear where the margin is this many typical errors."""
LEAST_AGREEMENT = 0.95
"""Share of the clear decisions, and of whole numbers, that have to be the program's."""
LEAST_CLASS_AGREEMENT = 0.9
"""The same of each class; refused where even the upper end of the 95 % interval lies below."""
MANY = 10
"""A class is judged on its own where it comes up so often, among pixels, tokens, signs and whole numbers; in scores [N, K] always."""
CHANCE = 0.01
"""Losses of right answers that are as unlikely as this by chance are refused, if they are more than `MOST_LOSS`."""
EXACT = 1000
"""Changed answers up to which that chance is summed exactly; more are as good as normal."""
MOST_LOSS = 0.01
MOST_CLASS_LOSS = 0.1
"""Share of the samples, and of those of a class, whose right answer may be lost on balance."""


@dataclass(frozen=True)
class Agreement:
    """How an output of a file agrees with the program's on held-out samples.

    Attributes:
        decisions: those of the task (of samples, labels, positions) that were compared; 0 where the outputs decide nothing. Without a
            task: samples whose argmax was compared, of scores [N, K].
        agreed: those that are the program's.
        clear: those whose margin is `CLEAR` typical errors or more.
        clear_agreed: those of them that are the program's.
        largest_error: of the outputs, relative to their largest magnitude.
        error: root mean square error relative to the standard deviation of the outputs over the samples; of whole numbers, the share
            that differs.
        refused: why the file is not good enough, or "".
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

    With a task, its decisions are compared (`sparsify.tasks.Task.scores`), label by label and class by class, and what they get right;
    where it decides nothing, only errors relative to the spread over the samples. Without one, shapes tell what may be decided.

    Args:
        want: the program's, finite or -inf for classes that are excluded.
        have: the file's, of the same shape.
        labels: int [N], or the targets of the task, to compare what both get right; None, or of another shape: it is not compared.
        scores: they are known to be scores of classes, as they are where ``labels`` are whole numbers.
        by_sample: the first dimension counts samples. If not, all values are taken as samples of one unit.
        task: what the output means; None: it is not known.
        threshold: above which a task of yes or no says yes: 0 of logits, 0.5 of probabilities.
    """
    if want.shape != have.shape:
        return _refused(f"its values have shape {list(have.shape)}, not {list(want.shape)}")
    if not want.size:
        return Agreement(0, 0, 0, 0, 0.0, 0.0, "")
    if not by_sample:
        want, have = want.reshape(-1), have.reshape(-1)
    if not np.issubdtype(want.dtype, np.floating):
        return _whole_numbers(want, have)
    known = np.isfinite(want)
    if not (np.isfinite(have[known]).all() and np.array_equal(have[~known], want[~known], equal_nan=True)):
        return _refused("its values are infinite or NaN where the program's are not")
    if by_sample and len(want) < 2:
        return _refused("one held-out sample is too few to compare it on")
    table, found = (np.where(known, values, 0.0).astype(np.float64) for values in (want, have))
    if task is None:
        scores = scores or (labels is not None and np.issubdtype(labels.dtype, np.integer))
    else:
        scores = by_sample and task.scores(torch.from_numpy(table)) is not None
    whole, reason = _by_error(table, found, scores=scores)
    largest = float(np.abs(found - table).max()) / max(float(np.abs(table).max()), 1e-30)
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
    """The decisions of a task: counts as of `_decisions`, and what is wrong with them; those that its targets do not judge are left out."""
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
    """Classes, ranks, counts, masks: equal or not."""
    want, have = want.reshape(-1), have.reshape(-1)
    reason = _by_class(want, want == have, "values", least=MANY, named=_Names()) if want.size else ""
    return Agreement(0, 0, 0, 0, float((want != have).any()), float((want != have).mean()), reason)


def _by_error(table: Array, found: Array, *, scores: bool) -> tuple[float, str]:
    """The error over all units relative to their spread, and what is wrong with it."""
    most, most_unit = (MOST_SCORES_ERROR, MOST_SCORE_ERROR) if scores else (MOST_ERROR, MOST_UNIT_ERROR)
    shape, table, found = table.shape, table.reshape(len(table), -1), found.reshape(len(found), -1)
    spread, off = table.std(axis=0), np.sqrt(((found - table) ** 2).mean(axis=0))
    size = np.abs(table).max(axis=0)
    moves = spread > STILL * size
    typical = float(np.sqrt((spread[moves] ** 2).mean())) if moves.any() else float(np.sqrt((table**2).mean()))
    whole = float(np.sqrt((off[moves] ** 2).mean())) / max(typical, 1e-30) if moves.any() else 0.0
    if not moves.any():
        whole = float(np.sqrt((off**2).mean())) / max(typical, 1e-30)
    if moves.any() and whole > most:
        return whole, f"its values are off by {whole:.2f} of their spread, {most} is allowed"
    still = ~moves & (off > MOST_STILL_ERROR * np.maximum(size, typical))
    if still.any():
        unit = int(np.argmax(still))
        return whole, (
            f"unit {unit}, which is {table[0, unit]:.3g} for every sample, is off by {off[unit]:.3g}, "
            f"{MOST_STILL_ERROR * max(float(size[unit]), typical):.3g} is allowed"
        )
    least = 0.0 if len(spread) <= FEW and not scores else LEAST_SPREAD * float(np.median(spread))
    wrong = moves & (spread >= least) & (off > most_unit * spread)
    if wrong.any():
        unit = int(np.argmax(np.where(wrong, off / np.maximum(spread, 1e-30), 0.0)))
        share = off[unit] / spread[unit]
        return whole, f"unit {unit} is off by {share:.2f} of its spread, {most_unit} is allowed"
    return whole, _by_channel(table.reshape(shape), found.reshape(shape), most_unit)


def _by_channel(table: Array, found: Array, most: float) -> str:
    """Channels, positions, tokens: the units that share an index, taken together over all others."""
    for axis in range(1, table.ndim if table.ndim > 2 else 0):
        others = tuple(place for place in range(table.ndim) if place != axis)
        spread, off = table.std(axis=others), np.sqrt(((found - table) ** 2).mean(axis=others))
        wrong = (off > most * spread) & (spread >= LEAST_SPREAD * np.median(spread)) & (spread > 0)
        if wrong.any():
            index = int(np.argmax(np.where(wrong, off / np.maximum(spread, 1e-30), 0.0)))
            share = off[index] / spread[index]
            return f"index {index} of dimension {axis} is off by {share:.2f} of its spread, {most} is allowed"
    return ""


def _decisions(
    want: Array, have: Array, labels: Array | None, *, least: int, about: Array | None = None
) -> tuple[Counts, str]:
    """For scores [N, K]: decisions, those agreed, clear ones, those agreed; and what is wrong with them.

    Args:
        want, have: of the program and of the file.
        labels: int [N], what is right.
        least: how often a class comes up that is judged on its own.
        about: int [N], the label that each decision is about; its classes are judged apart from those of other labels.
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
    """Classes by number, those of each label with numbers of their own."""

    columns: int = 1
    about: Array | None = None

    def kinds(self, choices: Array) -> Array:
        return choices if self.about is None else choices + self.about * self.columns

    def __call__(self, kind: int) -> str:
        if self.about is None:
            return f"class {kind}"
        return f"answer {kind % self.columns} of label {kind // self.columns}"


def _by_class(first: Array, same: Array, what: str, *, least: int, named: _Names) -> str:
    """What is wrong, by each class that comes up ``least`` times, and in all."""
    kinds, places, counts = np.unique(first, return_inverse=True, return_counts=True)
    found = np.bincount(places, weights=same)
    for kind, count, hits in zip(kinds, counts, found, strict=True):
        if count >= least and _upper(int(hits), int(count)) < LEAST_CLASS_AGREEMENT:
            return f"of {count} {what} for {named(kind)} it makes {int(hits)}"
    hits = int(found.sum())
    return "" if hits >= LEAST_AGREEMENT * len(first) else f"of {len(first)} {what} it makes {hits}"


def _by_labels(before: Array, after: Array, labels: Array, named: _Names) -> str:
    for kind in np.unique(labels):
        mine = labels == kind
        had, has = int(before[mine].sum()), int(after[mine].sum())
        if (had > 1 and has == 0) or _lost(before[mine], after[mine], MOST_CLASS_LOSS):
            return f"of {int(mine.sum())} samples of {named(kind)} it finds {has}, the program {had}"
    if _lost(before, after, MOST_LOSS):
        return f"its accuracy is {after.mean():.4f}, the program's {before.mean():.4f}"
    return ""


def _lost(before: Array, after: Array, most: float) -> bool:
    """Whether more right answers are lost than gained, by more than ``most`` of the samples and more than chance makes likely."""
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    if lost - gained <= most * len(before):
        return False
    count = lost + gained
    if count > EXACT:
        return (lost - gained - 1) / math.sqrt(count) > statistics.NormalDist().inv_cdf(1 - CHANCE)
    return sum(math.comb(count, k) for k in range(lost, count + 1)) / 2**count < CHANCE


def _upper(hits: int, count: int) -> float:
    """Upper end of Wilson's 95 % interval of a share."""
    z2 = 1.96**2
    share = hits / count
    middle = share + z2 / (2 * count)
    return (middle + math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2)))) / (1 + z2 / count)
