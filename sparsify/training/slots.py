"""Fills the slots of a method for a run of a given length: calls each slot's function once and checks its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsify.arguments import found
from sparsify.errors import SparsifyError, TrainingError
from sparsify.methods import Method
from sparsify.methods.base import Averaging, resolving
from sparsify.parts.corrections import Correction
from sparsify.parts.distillation import SelfDistillation
from sparsify.parts.objectives import Objective
from sparsify.parts.topology import DropAndGrow, InTurn, Prune, Rewinding, Topology

KINDS: Mapping[str, tuple[type, ...]] = {
    "topology": (DropAndGrow, Prune, InTurn),
    "rewinding": (Rewinding,),
    "correction": (Correction,),
    "averaging": (Averaging,),
    "self_distillation": (SelfDistillation,),
}
"""What the function in a slot should return."""
OBJECTIVE = ("init", "observe", "loss", "readings")
"""The methods of an `Objective`, which may be of any class."""


@dataclass(frozen=True)
class Slots:
    """The values of a method's slots; None for an empty slot.

    Attributes:
        durations: the number of steps of each duration of the method in this run, by ``slot.option``.
    """

    topology: Topology | None
    rewinding: Rewinding | None
    correction: Correction | None
    objective: Objective | None
    averaging: Averaging | None
    self_distillation: SelfDistillation | None
    durations: dict[str, int]


def filled(method: Method, total_steps: int) -> Slots:
    """Call the functions in the slots of a method.

    Raises:
        TrainingError: If a function fails or returns something that does not belong in its slot.
        SparsifyError: If the method itself refuses the length of the run.
    """
    durations, made = dict[str, int](), dict[str, Any]()
    for slot in (*KINDS, "objective"):
        function: Callable[[int], Any] | None = getattr(method, slot)
        if function is None:
            continue
        where = f"method {method.name!r}: slot {slot}"
        with resolving() as resolved:
            try:
                value = function(total_steps)
            except SparsifyError:
                raise
            except Exception as error:  # code of the user's, which may raise anything
                raise TrainingError(
                    f"{where} failed for a run of {total_steps} steps: {type(error).__name__}: {error}. A slot holds a function of the "
                    f"number of steps of the run that returns {_wanted(slot)}."
                ) from error
        if not _belongs(slot, value):
            raise TrainingError(
                f"{where} should return {_wanted(slot)}, found {found(value)}. Put a function of the number of steps of the run there, "
                f"such as lambda total: ..."
            )
        made[slot] = value
        durations |= {f"{slot}.{option}": steps for option, steps in resolved.items()}
    return Slots(
        topology=made.get("topology"),
        rewinding=made.get("rewinding"),
        correction=made.get("correction"),
        objective=made.get("objective"),
        averaging=made.get("averaging"),
        self_distillation=made.get("self_distillation"),
        durations=durations,
    )


def _belongs(slot: str, value: object) -> bool:
    if slot == "objective":
        return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in OBJECTIVE)
    return isinstance(value, KINDS[slot])


def _wanted(slot: str) -> str:
    if slot == "objective":
        return f"an Objective (an object with the methods {', '.join(OBJECTIVE)})"
    return " or ".join(kind.__name__ for kind in KINDS[slot])
