"""The batch sizes that a file may be called with: what it says of them, and which of them to run it at."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from sparsify.ir import Program
from sparsify.ir.batches import BatchRange

KEY = "batch_range"


def allowed_batches(program: Program) -> BatchRange:
    """The sizes a file of the program may be called with, where its batch is open."""
    return program.batch_ranges["eval"]


def range_metadata(program: Program) -> dict[str, str]:
    """``batch_range`` as a file says it, JSON with low, high, step and excluded; nothing where every batch is allowed, or one size is."""
    allowed = allowed_batches(program)
    return {} if allowed.everything else {KEY: json.dumps(dataclasses.asdict(allowed))}


def range_in(metadata: Mapping[str, str]) -> BatchRange:
    """The range that `range_metadata` wrote; that of every batch where it wrote none."""
    form = json.loads(metadata.get(KEY, "{}"))
    return BatchRange(**form | {"excluded": tuple(form.get("excluded", ()))})


def largest_batch(program: Program, count: int) -> int:
    """The largest batch that ``count`` samples make, and the program takes: of two samples at least, which may then be repeated."""
    allowed = allowed_batches(program)
    size = allowed.at_most(count) or 1
    return size if size > 1 else allowed.nearest(max(count, 2))
