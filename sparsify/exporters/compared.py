"""One output of a file beside the program's, number by number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsify.exporters.signature import Output

Array = np.ndarray
TOLD = 10.0
"""An output is compared where the samples move it by this many tolerances; below, another output could stand in its place."""
Point = tuple[tuple[str, int], ...]
"""Sizes of a run by dimension."""


@dataclass(frozen=True)
class Compared:
    """One output at one batch, [N, U] each: the program's values, and error, tolerance and size of the file's."""

    output: Output
    point: Point
    wanted: Array
    error: Array
    tolerance: Array
    size: Array

    def told(self, *, lone: bool) -> Array:
        """Bool [U]: which units the samples move by `TOLD` tolerances; of a lone sample, which differ from 0 by them."""
        finite = np.isfinite(self.wanted) & np.isfinite(self.tolerance)
        if lone or len(self.wanted) == 1:
            return (finite & (np.abs(self.wanted) > TOLD * self.tolerance))[0]
        low = np.min(self.wanted + self.tolerance * TOLD / 2, axis=0, where=finite, initial=np.inf)
        high = np.max(self.wanted - self.tolerance * TOLD / 2, axis=0, where=finite, initial=-np.inf)
        return high > low

    def decisions(self) -> tuple[int, int]:
        """Samples whose highest logit is clear, and those where it is a tie; (0, 0) for an output that does not choose among classes."""
        if not self.output.chooses:
            return 0, 0
        rows = np.arange(len(self.wanted))
        order = np.argsort(np.nan_to_num(self.wanted, nan=-np.inf, posinf=np.inf, neginf=-np.inf), axis=1)
        first, second = order[:, -1], order[:, -2]
        with np.errstate(all="ignore"):
            margin = self.wanted[rows, first] - self.wanted[rows, second]
            clear = margin > self.tolerance[rows, first] + self.tolerance[rows, second]
        return int(clear.sum()), int((~clear).sum())
