"""The entry point: what the package adds to sparsify."""

from __future__ import annotations

from sparsify import heads, passes, tasks
from sparsify.methods import METHODS
from sparsify.parts.allocation import ALLOCATIONS
from sparsify_example import BoundActivations, Ordinal, Platt, by_inputs, mest


def register() -> None:
    """Add everything; called once, when a name is first looked up."""
    METHODS.register("mest", mest)
    ALLOCATIONS.register("by_inputs", by_inputs)
    passes.register(BoundActivations)
    tasks.register(Ordinal)
    heads.register(Platt())
