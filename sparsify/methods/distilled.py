"""Knowledge distillation from a teacher, around any method."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method, in_range
from sparsify.parts.distillation import Distillation


@checked_method
def distilled(base: Method, *, weight: float = 0.9, temperature: float = 4.0) -> Method:
    """Learn from a teacher's outputs as well as from labels (Hinton et al. 2015, arXiv:1503.02531).

    The loss is (1 - weight) times that of ``base`` plus weight times T² · KL between the teacher's and the model's probabilities at
    temperature T. These are softmax probabilities per sample, position or step, or yes/no probabilities for tasks with such answers. A
    regression uses the mean squared difference to the teacher's prediction instead, without a temperature. A custom task does not define
    how a model imitates a teacher, so it is refused.

    The teacher runs in eval mode on the inputs of the batch, after augmentation and attacks. Each of its forward passes is counted. The
    comparison leaves out an unknown class (`moon`).

    The method does not choose the teacher: in a recipe it is the dense baseline of the run or the program of another run, and in
    `sparsify.attach` any function of the inputs.

    Args:
        base: any method.
        weight: weight of the teacher's term, in [0, 1]; 0 is ``base``. The default is that of the RepDistiller benchmark (Tian et al. 2020,
            arXiv:1910.10699; ``-r 0.1 -a 0.9``).
        temperature: T, above 0; the default has the same source (``kd_T``).

    Raises:
        RecipeError: If ``base`` has a teacher already or learns from its own past, or an option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.distilled(sp.methods.gmp(density=0.1), temperature=2.0)
        >>> method.name, method.distillation.temperature
        ('distilled(gmp)', 2.0)
    """
    if base.distillation is not None:
        raise RecipeError(
            f"method {base.name!r} learns from a teacher already; distilled() around it has nothing to add."
        )
    if base.self_distillation is not None:
        raise RecipeError(
            f"distilled({base.name}): {base.name!r} learns from its own past predictions; it cannot have another teacher. Wrap a method "
            f"without ps-kd."
        )
    in_range(weight, 0.0, 1.0, "weight")
    in_range(temperature, 1e-3, 1e3, "temperature")
    return dataclasses.replace(
        base,
        name=f"distilled({base.name})",
        distillation=Distillation(weight, temperature),
    )
