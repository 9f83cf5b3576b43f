"""Progressive self-knowledge distillation, around any method."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, check_no_objective, checked_method, in_range, made_for
from sparsify.methods.durations import Duration, as_steps, check_durations
from sparsify.parts.distillation import SelfDistillation


@checked_method
def ps_kd(base: Method, *, weight: float = 0.8, snapshot_every: Duration = 0) -> Method:
    """PS-KD: learn from what the model itself predicted an epoch ago, more and more (Kim et al. 2021, arXiv:2006.12000).

    The target becomes (1 - a) times the label plus a times the probabilities of the model at the end of the previous epoch. The weight a
    is the same within an epoch; it grows in equal steps from epoch to epoch, to ``weight`` in the last. The first epoch trains as ``base``.
    The published code stores the probabilities of every training sample as they were computed in the previous epoch. Here a copy of the
    model computes them in eval mode on the inputs of the batch, one forward pass per step, so that samples need no numbers and each
    augmented input has its own target.

    The loss is (1 - a) times that of the task plus a times KL between past and present probabilities. Its value is lower than
    cross-entropy to the mixed target by a times the entropy of the past probabilities, which has no gradient. For classification.

    Args:
        base: any method without a teacher and without a loss of its own.
        weight: weight a in the last epoch, in [0, 1]; 0 is ``base``. The default is that of the published code.
        snapshot_every: steps, or share of the run, in place of an epoch; 0 means an epoch.

    Raises:
        RecipeError: If ``base`` has a teacher or a loss of its own or is for another task, or an option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.ps_kd(sp.methods.rigl(density=0.1), weight=0.5).name
        'ps-kd(rigl)'
    """
    check_no_objective(base, "ps-kd")
    if base.distillation is not None:
        raise RecipeError(
            f"ps-kd({base.name}): {base.name!r} learns from a teacher already; a model cannot learn from its past as well. Wrap a method "
            f"without distilled."
        )
    in_range(weight, 0.0, 1.0, "weight")
    check_durations(0, snapshot_every=snapshot_every)

    def plan(total: int) -> SelfDistillation:
        return SelfDistillation(weight, as_steps(snapshot_every, total, "snapshot_every", least=0))

    tasks = made_for(base, "classification")
    return dataclasses.replace(base, name=f"ps-kd({base.name})", self_distillation=plan, tasks=tasks)
