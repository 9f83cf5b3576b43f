"""Cases one after another: case ``i`` of a seed is always the same file."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.kinds import KINDS
from tests.fuzz.watch import Outcome, watched


@dataclass
class Tally:
    """How the cases of a kind ended, and the CPU seconds of the longest."""

    ends: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0


def campaign(cases: int, seed: int, *, only: str | None = None) -> Iterator[tuple[str, int, Outcome, dict[str, Tally]]]:
    """(kind, number, outcome, tally so far) of every case; kinds come in proportion to their shares, each at least once."""
    kinds = [kind for kind in KINDS if only is None or only in kind.name]
    shares = [kind.share for kind in kinds]
    tally = {kind.name: Tally() for kind in kinds}
    os.environ["SPARSIFY_CACHE"] = "off"
    here = Path.cwd()
    for number in range(cases):
        draw = random.Random(f"{seed}-{number}")
        kind = kinds[number] if number < len(kinds) else draw.choices(kinds, shares)[0]
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            path = kind.make(draw, folder)
            os.chdir(folder)
            start = time.process_time()
            outcome = watched(lambda read=kind.read, path=path: read(path), folder, writes=kind.writes)
            row = tally[kind.name]
            row.longest = max(row.longest, time.process_time() - start)
            row.ends[outcome.kind] += 1
        finally:
            os.chdir(here)
            shutil.rmtree(folder, ignore_errors=True)
        yield kind.name, number, outcome, tally
