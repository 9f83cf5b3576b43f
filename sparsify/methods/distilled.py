"""Knowledge distillation from a teacher, around any method."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method, in_range
from sparsify.parts.distillation import Distillation


@checked_method
def distilled(base: Method, *, weight: float = 0.9, temperature: float = 4.0) -> Method:
    """Learn from the answers of a teacher beside the labels (Hinton et al. 2015, arXiv:1503.02531).

    The loss is (1 - weight) times that of ``base`` plus weight times T² · KL between the softmax at temperature T of the teacher's and of
    the model's logits: of classes per sample, position or step; of yes and no for the tasks that ask that. A regression has the mean
    squared difference to the teacher's prediction in its place, without a temperature. A custom task does not say how a model imitates
    a teacher, and is refused.

    The teacher answers in eval mode, on the very inputs of the batch, augmented and attacked as they are; each answer is a forward pass
    and is counted as one. An unknown class (`moon`) is left out of the comparison.

    Who the teacher is stands outside the method: the dense baseline of a run or the program of another in a recipe, any function of the
    inputs in `sparsify.attach`.

    Args:
        base: any method.
        weight: of the teacher's term, in [0, 1]; 0 is ``base``. The default is that of the RepDistiller benchmark (Tian et al. 2020,
            arXiv:1910.10699; ``-r 0.1 -a 0.9``).
        temperature: above 0; the same source (``kd_T``).

    Raises:
        RecipeError: If ``base`` has a teacher already, or an option is out of range.

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
    in_range(weight, 0.0, 1.0, "weight")
    in_range(temperature, 1e-3, 1e3, "temperature")
    return dataclasses.replace(
        base,
        name=f"distilled({base.name})",
        distillation=Distillation(weight, temperature),
    )
