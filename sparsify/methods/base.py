"""`Method`: a value with a slot for each thing a sparse trainer may do differently."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sparsify.arguments import checked, checked_fields
from sparsify.errors import RecipeError
from sparsify.methods.durations import as_steps as as_steps
from sparsify.methods.durations import resolving as resolving
from sparsify.parts.allocation import FIXED_TOLERANCE, Allocation, erk, name_of, needs_gradient
from sparsify.parts.attacks import Attack
from sparsify.parts.corrections import Correction
from sparsify.parts.distillation import Distillation, SelfDistillation
from sparsify.parts.individual import IndividualCalibration
from sparsify.parts.mixing import Mixing
from sparsify.parts.objectives import Objective
from sparsify.parts.patterns import NM, parse_pattern
from sparsify.parts.topology import Rewinding, Topology
from sparsify.passes import Pass

_ALLOCATION = (
    "{name}: an allocation is a function of sparsify.parts.allocation, such as erk or global_magnitude, found {found}."
)
checked_method = checked(
    RecipeError,
    base="{name} takes a method first, found {found}. Build one by calling it: {name}(sparsify.methods.rigl(density=0.1)).",
    allocation=_ALLOCATION,
    initial_allocation=_ALLOCATION,
)
"""For functions that return a `Method`."""
GROWN_IN_SHORT_RUNS = (
    "method {method!r} grows by gradient from a sparse start, and {total} steps with {between} between rounds may be too few for that: in "
    "420 steps with a round every 20, on spoken digits, rigl, itop and dst-ee fitted the training data worse than static, set and gmp did, "
    "on each of three seeds. Use gmp where training may start dense, compare with set and static (sparsify compare), or train longer "
    "with more steps between rounds (update_every)."
)
"""What training says of such a run: the method, its steps, and the steps between rounds."""


@checked_fields(RecipeError)
@dataclass(frozen=True)
class Averaging:
    """Average the weights at every ``every``-th step from step ``start_at`` on; the masks must be fixed by then.

    ``random_masks``: True averages what the training graph reads, including random masks; False averages only the weights.
    """

    start_at: int
    every: int
    random_masks: bool = True


@checked_fields(RecipeError)
@dataclass(frozen=True)
class Method:
    """What a sparse trainer does.

    Attributes:
        name: as written in a recipe; a wrapper writes ``wrapper(base)``.
        density: final active fraction of the maskable weights, in (0, 1].
        initial: masks at the start: ``dense`` (all ones), ``random``, or ``magnitude`` (the largest magnitudes).
        initial_scale: ``fan-in`` multiplies the active weights of each output by sqrt(number of inputs / number of active inputs), so that
            its variance is that of the dense layer (Evci et al. 2022, arXiv:2010.03533, section 3); ``none`` does not scale.
        allocation: how the density of masks at the start is split over weights; rounds that prune have their own in ``topology``.
        pattern: which positions may be active together.
        keep_dense: globs of the names of weights that get no mask.
        initial_density: density of random and magnitude masks at the start, in [density, 1]; None: ``density``.
        topology: makes the rule of rounds from the total number of optimizer steps; None: masks never change.
        rewinding: makes the plan of going back to an early state from the total number of steps; None: never.
        correction: makes the correction of gradients from the total number of optimizer steps; None: no correction.
        objective: makes the loss from the total number of optimizer steps; None: the loss of the task.
        reference: makes the function of ``objective`` from the recall of each class of a dense model on the training samples (None for a
            class without samples), which the run provides; None: nothing to compare with.
        distillation: adds a term that pulls outputs towards those of a teacher, which the run provides; None: no teacher.
        individual: adds the error of individual calibration to the loss, by samples that are not trained on; None: no such error.
        self_distillation: makes the plan of learning from the model's own past from the total number of steps; None: never.
        mixing: mixes the samples of each training batch; None: batches are trained on as they are.
        attack: makes the inputs of training batches adversarial; None: no attack.
        averaging: makes the plan of averaging weights after the masks are fixed; None: no averaging.
        passes: additional passes, applied after masks and taps are inserted. Parameters that they add join the optimizer.
        holds_hidden: whether weights that a random mask hides keep their value during a step; False: momentum and weight decay move them.
        tasks: names of the tasks that the method supports; empty: every task.

    Examples:
        >>> import sparsify as sp
        >>> sp.Method(name="half", density=0.5, initial="random").name
        'half'
    """

    name: str
    density: float
    initial: Literal["dense", "random", "magnitude"]
    initial_scale: str = "none"
    allocation: Allocation = erk
    pattern: str = "unstructured"
    keep_dense: tuple[str, ...] = ()
    initial_density: float | None = None
    topology: Callable[[int], Topology] | None = None
    rewinding: Callable[[int], Rewinding] | None = None
    correction: Callable[[int], Correction] | None = None
    objective: Callable[[int], Objective] | None = None
    reference: Callable[[Sequence[float | None]], Callable[[int], Objective]] | None = None
    distillation: Distillation | None = None
    individual: IndividualCalibration | None = None
    self_distillation: Callable[[int], SelfDistillation] | None = None
    mixing: Mixing | None = None
    attack: Attack | None = None
    averaging: Callable[[int], Averaging] | None = None
    passes: tuple[Pass, ...] = ()
    holds_hidden: bool = True
    tasks: tuple[str, ...] = ()

    @property
    def needs_another(self) -> bool:
        """Whether the run has to provide another model: a teacher, or a dense model to compare with."""
        return self.distillation is not None or self.reference is not None

    def __post_init__(self) -> None:
        if self.initial_scale not in {"fan-in", "none"}:
            raise RecipeError(
                f"method {self.name!r}: initial_scale should be fan-in or none, found {self.initial_scale!r}."
            )
        check_density(self.name, self.density)
        if self.initial_density is not None and not self.density <= self.initial_density <= 1.0:
            raise RecipeError(
                f"method {self.name!r}: initial_density should be between the final density {self.density} and 1, found "
                f"{self.initial_density}."
            )
        if self.initial != "dense" and needs_gradient(self.allocation):
            raise RecipeError(
                f"method {self.name!r} starts from {self.initial} masks, whose density {name_of(self.allocation)} cannot split: it ranks "
                f"by gradients, and there are none before training. Choose another allocation, such as erk, or a method that starts "
                f"dense and prunes during training, such as gmp."
            )
        pattern = parse_pattern(self.pattern)
        if not isinstance(pattern, NM):
            return
        fixed = pattern.n / pattern.m
        if abs(self.density - fixed) > FIXED_TOLERANCE:
            raise RecipeError(
                f"method {self.name!r}: pattern {self.pattern} fixes the density at {fixed:.4g} (sparsity {1 - fixed:.4g}), found "
                f"{self.density}. Ask for that, or choose another pattern."
            )
        if self.initial != "dense" and abs((self.initial_density or fixed) - fixed) > FIXED_TOLERANCE:
            raise RecipeError(
                f"method {self.name!r}: pattern {self.pattern} fixes the density at {fixed:.4g} from the start, found initial_density "
                f"{self.initial_density}. Start dense (1.0), or choose another pattern."
            )


def check_density(method: str, density: float) -> None:
    """Check that a density is in (0, 1].

    Raises:
        RecipeError: If it is not.
    """
    if not 0.0 < density <= 1.0:
        share = f" {density:g} % is {density / 100:g}." if 1.0 < density <= 100.0 else ""
        raise RecipeError(
            f"method {method!r}: density should be a fraction in (0, 1], found {density!r}.{share} Sparsity 0.9 is density 0.1."
        )


def made_for(base: Method, *tasks: str) -> tuple[str, ...]:
    """Return the tasks that both a wrapper made for ``tasks`` and its ``base`` support.

    Raises:
        RecipeError: If they have no task in common.
    """
    common = tuple(task for task in tasks if not base.tasks or task in base.tasks)
    if not common:
        raise RecipeError(
            f"method {base.name!r} is made for the task {' or '.join(base.tasks)}, its wrapper for {' or '.join(tasks)}."
        )
    return common


def check_no_objective(base: Method, wrapper: str) -> None:
    """Check that ``base`` has no loss of its own and does not learn from its past, before a wrapper gives it a loss.

    Raises:
        RecipeError: If it has, or does.
    """
    if base.self_distillation is not None:
        raise RecipeError(
            f"{wrapper}({base.name}): {base.name!r} learns from its own past predictions, which is defined for the loss of the task only. "
            f"Wrap a method without ps-kd."
        )
    if base.objective is not None:
        raise RecipeError(
            f"{wrapper}({base.name}): {base.name!r} has a loss of its own already; wrap a method without one."
        )


def with_objective(base: Method, wrapper: str, objective: Callable[[int], Objective]) -> Method:
    """Return ``base`` with a loss of logits [N, K] and class numbers [N], named as wrapped by ``wrapper``.

    Raises:
        RecipeError: If ``base`` has a loss of its own, or does not support classification.
    """
    check_no_objective(base, wrapper)
    return dataclasses.replace(
        base, name=f"{wrapper}({base.name})", objective=objective, tasks=made_for(base, "classification")
    )


def one_of(value: str, choices: Sequence[str], option: str) -> str:
    """Return ``value`` if it is one of the choices.

    Raises:
        RecipeError: If it is not.
    """
    if value not in choices:
        raise RecipeError(f"{option} should be {' or '.join(choices)}, found {value!r}.")
    return value


def in_range(value: float, low: float, high: float, option: str) -> float:
    """Return ``value`` if it is in [low, high].

    Raises:
        RecipeError: If it is not.
    """
    if not low <= value <= high:
        raise RecipeError(f"{option} should be between {low} and {high}, found {value}.")
    return value
