"""Counts the passes that a loss takes besides that of the batch itself, such as those of a teacher."""

from __future__ import annotations


class Extra:
    """Counts extra passes: once for all micro-batches that a step accumulates, and once for each probe.

    Args:
        counts: counts of the trainer; its ``probes`` are read, and its ``forwards`` and ``backwards`` are incremented.
    """

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts
        self._counted: int | None = None  # number of probes when passes were last counted, if that was for this step

    def count(self, *, forwards: int, backwards: int = 0) -> None:
        """Count the passes of a loss, unless they were counted for another micro-batch of this step."""
        if self._counted != self._counts["probes"]:
            self._counts["forwards"] += forwards
            self._counts["backwards"] += backwards
        self._counted = self._counts["probes"]

    def reset(self) -> None:
        """Note that the next loss is not that of another micro-batch: the step itself, or its probes, begin."""
        self._counted = None
