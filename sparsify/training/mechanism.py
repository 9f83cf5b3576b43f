"""Mechanisms: each handles one thing that happens during a run. A trainer calls their hooks at fixed places and knows nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from sparsify.training.probe import Closure

ABSENT: Mapping[str, Any] = {
    "early": {},
    "correction": None,
    "individual": {},
    "averages": {},
    "compact": {"compact": [], "since": {}},
    "active_steps": {},
}
"""What a saved run contains for mechanisms that its method does not have."""


class Mechanism:
    """One thing that happens during a run. A trainer holds the mechanisms of its method in the order in which they act after a step.

    A mechanism defines only the hooks that it needs. Hooks that it does not define, or that are not ``active`` in this run, cost nothing.

    Attributes:
        key: name of its state in the state of the trainer; empty if it has no state.
        active: whether its `hooks` have anything to do in this run; known when the run begins.
    """

    key: ClassVar[str] = ""
    active: bool = True

    def start(self) -> None:
        """Start with the present weights and masks."""

    def link(self, step: int) -> None:
        """Look up objects of this program and these optimizers before ``step``: at the start, in a copy, and after loading."""

    def join(self, loss: Tensor, output: Any, target: Any, inputs: Any) -> Tensor:
        """Add a term to the loss of a batch; returns the sum.

        Args:
            loss: the loss so far, a scalar.
            output: what the task reads of the train phase.
            target: target of the batch.
            inputs: inputs of the batch; None if the loop did not give them.
        """
        del output, target, inputs
        return loss

    def before_step(self, step: int, closure: Closure | None) -> None:
        """Act before the optimizer's step, if gradients are finite. Not called on a round that replaces the optimizer's step."""

    def after_step(self, step: int, moved: bool) -> None:
        """Act after ``step``; ``moved`` is False if the step was skipped."""

    def readings(self) -> Mapping[str, float]:
        """Return the mechanism's figures for the history, by name."""
        return {}

    def finish(self) -> bool:
        """End the run. Returns whether that changed the weights that the train phase reads."""
        return False

    def state_dict(self) -> Any:
        """Return the whole state; it loads with ``weights_only=True``."""

    def load_state_dict(self, state: Any) -> None:
        """Continue from a saved state, whose tensors are on the device of the program."""


def hooks(mechanisms: Iterable[Mechanism], name: str) -> tuple[Callable[..., Any], ...]:
    """Return the hooks called ``name`` of all active mechanisms that define it."""
    default = getattr(Mechanism, name)
    return tuple(getattr(m, name) for m in mechanisms if m.active and getattr(type(m), name) is not default)
