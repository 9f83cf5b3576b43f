"""What an export came to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsify.exporters.int8 import Int8
from sparsify.exporters.proof import Parity
from sparsify.ir.size_ranges import EVERY, SizeRange


@dataclass(frozen=True)
class ExportResult:
    """The written file: size in bytes, non-zeros and positions of the weights that were masked, its parity, and all parameters.

    Non-zeros of outputs that nothing reads are counted, though forms other than ``dense`` leave them out of the file.

    Attributes:
        parity: of the fp32 file, also where an int8 file was written.
        forms: by weight, ``grouped``, or why it was left dense; all are dense where a file in that form could not be made, or was made
            and was wrong.
        int8: how the int8 file came about and agrees with the program; None with precision fp32.
        ranges: the sizes the file may be called with, by dimension (``N`` is the batch).
            `metadata_props` has those that are limited under ``size_ranges``.
        head: name of the calibration head, as `metadata_props` have it under ``calibration``: ``none`` without one, and None where it
            is not known which head it is.
    """

    path: Path
    bytes: int
    nonzeros: int
    positions: int
    parity: Parity
    forms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    int8: Int8 | None = None
    ranges: Mapping[str, SizeRange] = dataclasses.field(default_factory=dict)
    params: int = 0
    head: str | None = None

    @property
    def batch_range(self) -> SizeRange:
        """The batch sizes the file may be called with; a file of one fixed size has every size here."""
        return self.ranges.get("N", EVERY)

    @property
    def model_density(self) -> float:
        """The share of all the program's parameters that is not masked to 0."""
        return (self.params - self.positions + self.nonzeros) / self.params if self.params else 1.0
