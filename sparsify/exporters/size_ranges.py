"""The sizes that a file may be called with: what it says of them, and which of them to run it at."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from sparsify.ir import Program
from sparsify.ir.dimensions import BATCH
from sparsify.ir.size_ranges import EVERY, SizeRange

FEW = 8
"""Samples of runs at other sizes than those at hand."""
KEY = "size_ranges"


def allowed_batches(program: Program) -> SizeRange:
    """The batch sizes a file of the program may be called with, where its batch is open."""
    return program.batch_ranges["eval"]


def file_name(name: str) -> str:
    """What files call a dimension."""
    return "batch" if name == BATCH else name


def range_metadata(program: Program) -> dict[str, str]:
    """``size_ranges`` as a file says it, JSON with low, high, step and excluded by dimension, for those that are limited; else nothing."""
    limited = {file_name(name): r for name, r in program.ranges["eval"].items() if not r.everything}
    return {KEY: json.dumps({name: dataclasses.asdict(r) for name, r in limited.items()})} if limited else {}


def ranges_in(metadata: Mapping[str, str]) -> dict[str, SizeRange]:
    """The ranges that `range_metadata` wrote, by dimension; one that is not there has every size."""
    forms = json.loads(metadata.get(KEY, "{}"))
    return {name: SizeRange(**form | {"excluded": tuple(form.get("excluded", ()))}) for name, form in forms.items()}


def proof_sizes(program: Program, given: Mapping[str, int], samples: int) -> list[dict[str, int]]:
    """Sizes at which to run a file, the sizes of the inputs at hand first.

    Args:
        program: of the file.
        given: sizes of the inputs at hand, by dimension; the batch, where it varies, is not read.
        samples: at hand.

    Returns:
        All samples; the smallest batch; and for other dimensions, with a few samples: all smallest, all larger, each larger by itself.
    """
    others = {name: size for name, size in given.items() if name != BATCH}
    allowed = program.ranges["eval"]
    batches, few = [{}], {}
    if program.dynamic_batch:
        largest = largest_batch(program, samples)
        batches = [{BATCH: largest}, {BATCH: allowed_batches(program).nearest(1)}]
        few = {BATCH: allowed_batches(program).at_most(min(largest, FEW)) or batches[1][BATCH]}
    low = {name: allowed.get(name, EVERY).nearest(1) for name in others}
    high = {name: _larger(allowed.get(name, EVERY), size) for name, size in others.items()}
    points = [low, high, *({name: high[name]} for name in others)] if others else []
    found = [{**others, **batch} for batch in batches] + [{**others, **few, **point} for point in points]
    return [point for place, point in enumerate(found) if point not in found[:place]]


def _larger(allowed: SizeRange, size: int) -> int:
    """The largest size, where it is near, or about twice as many."""
    top = allowed.high
    return allowed.nearest(2 * size + 1 if top is None or top > 4 * size else top)


def largest_batch(program: Program, count: int) -> int:
    """The largest batch that ``count`` samples make, and the program takes: of two samples at least, which may then be repeated."""
    allowed = allowed_batches(program)
    size = allowed.at_most(count) or 1
    return size if size > 1 else allowed.nearest(max(count, 2))
