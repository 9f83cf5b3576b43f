"""What happens along a run: each thing in a `Mechanism` of its own, which a trainer calls at fixed places and knows no more of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from sparsify.training.probe import Closure

ABSENT: Mapping[str, Any] = {"early": {}, "correction": None, "averages": {}}
"""What a saved run holds for mechanisms that its method does not have."""


class Mechanism:
    """One thing that happens along a run. A trainer holds those of its method in the order in which they act after a step.

    Each does what it needs to: a hook of a step that it does not define, or has no use for in this run (``active``), costs nothing.

    Attributes:
        key: what its state is called in that of the trainer; empty without state.
        active: whether its `hooks` have anything to do in this run, known when the run begins.
    """

    key: ClassVar[str] = ""
    active: bool = True

    def start(self) -> None:
        """Begin with the weights and masks as they are."""

    def link(self, step: int) -> None:
        """Look up what belongs to this very program and these very optimizers, before ``step``: at first, in a copy,
        after loading."""

    def join(self, loss: Tensor, output: Any, target: Any, inputs: Any) -> Tensor:
        """The loss of a batch with a term of its own.

        Args:
            loss: a scalar.
            output: what the task reads of the train phase.
            target: of the batch.
            inputs: of the batch; None where the loop did not say.
        """
        del output, target, inputs
        return loss

    def before_step(self, step: int, closure: Closure | None) -> None:
        """Act before the optimizer does, when gradients are finite. Not called on a round that takes the optimizer's place."""

    def after_step(self, step: int, moved: bool) -> None:
        """Act after ``step``; ``moved`` is False where it was skipped."""

    def readings(self) -> Mapping[str, float]:
        """Figures of its own, by name."""
        return {}

    def finish(self) -> bool:
        """End the run. Returns whether that changed the weights that the train phase reads."""
        return False

    def state_dict(self) -> Any:
        """All of its state; loads with ``weights_only=True``."""

    def load_state_dict(self, state: Any) -> None:
        """Go on from a saved state, whose tensors are on the device of the program."""


def hooks(mechanisms: Iterable[Mechanism], name: str) -> tuple[Callable[..., Any], ...]:
    """The hooks called ``name`` of the mechanisms that are active and define one."""
    default = getattr(Mechanism, name)
    return tuple(getattr(m, name) for m in mechanisms if m.active and getattr(type(m), name) is not default)
