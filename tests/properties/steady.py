"""Examples are derived from the tests' own names, so that a run is the same everywhere."""

from __future__ import annotations

from hypothesis import settings

steady = settings(derandomize=True, deadline=None, database=None, max_examples=60)
