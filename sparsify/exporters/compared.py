"""One output of a file beside the program's, number by number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsify.exporters.signature import Output

Array = np.ndarray
TOLD = 10.0
"""An output is compared where the samples move it by this many tolerances; below, another output could stand in its place."""
Point = tuple[tuple[str, int], ...]
"""Sizes of a run by dimension."""


@dataclass(frozen=True)
class Compared:
    """One output at one batch, [N, U] each: the program's values, and error, tolerance and size of the file's; ``shape`` is [N, ...]."""

    output: Output
    point: Point
    wanted: Array
    error: Array
    tolerance: Array
    size: Array
    shape: tuple[int, ...]

    def told(self, *, lone: bool) -> Array:
        """Bool [U]: which units the samples move by `TOLD` tolerances; of a lone sample, which differ from 0 by them."""
        finite = np.isfinite(self.wanted) & np.isfinite(self.tolerance)
        if lone or len(self.wanted) == 1:
            return (finite & (np.abs(self.wanted) > TOLD * self.tolerance))[0]
        low = np.min(self.wanted + self.tolerance * TOLD / 2, axis=0, where=finite, initial=np.inf)
        high = np.max(self.wanted - self.tolerance * TOLD / 2, axis=0, where=finite, initial=-np.inf)
        return high > low

    def decisions(self) -> tuple[int, int]:
        """Decisions of the task that are clear, and those that are ties; (0, 0) for an output that decides nothing."""
        wanted, tolerance = self._scores(self.wanted), self._scores(self.tolerance)
        if wanted is None or tolerance is None:
            return 0, 0
        known = wanted.nan_to_num(nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        best = known.topk(2, dim=1).indices
        first, second = wanted.gather(1, best).unbind(1)
        clear = first - second > tolerance.gather(1, best).sum(1)
        return int(clear.sum()), int((~clear).sum())

    def _scores(self, values: Array) -> Tensor | None:
        task = self.output.task
        return None if task is None else task.scores(torch.from_numpy(values).reshape(self.shape))


def as_numbers(value: Tensor) -> Array:
    """Numbers as float64, complex ones as pairs of them."""
    return (torch.view_as_real(value) if value.is_complex() else value).detach().double().numpy()


def distance(want: Array, have: Array) -> Array:
    """|want - have|; 0 where both are the same infinity or both are not a number, infinite where only one of them is."""
    with np.errstate(invalid="ignore"):
        found = np.abs(want - have)
    same = (want == have) | (np.isnan(want) & np.isnan(have))
    return np.where(same, 0.0, np.where(np.isnan(found), np.inf, found))
