"""Adversarial training, around any method."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method, in_range
from sparsify.parts.attacks import Attack


@checked_method
def adversarial(base: Method, *, radius: float = 8 / 255, step_size: float = 2 / 255, iterations: int = 10) -> Method:
    """Train on adversarial inputs made by projected gradient descent (Madry et al. 2018, arXiv:1706.06083).

    The attack raises the loss of the task: cross-entropy for classification, the squared error for a regression, your own loss for a
    custom task.

    The attack starts from a random point in a box around each input and follows gradients of the eval phase, so it does not affect running
    statistics or dropout. It is part of the loss: if a batch is evaluated again with other weights, it is attacked again with those
    weights, from the same start. The correction of `agent` therefore still has expected value 0. This would not hold if its two terms saw
    inputs that were made with different weights.

    Args:
        base: any method.
        radius: half the side of the box, in units of the model's inputs; 8/255 is for images in [0, 1] (the AGENT repository's robust
            runs). If inputs are normalised, divide by their standard deviation.
        step_size: how far an iteration moves each input, in the same units (same source).
        iterations: number of gradient steps (same source). Each costs a forward and a backward pass, which are counted.

    Raises:
        RecipeError: If ``base`` attacks already, or an option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.adversarial(sp.methods.rigl(density=0.1), iterations=3).attack.iterations
        3
    """
    if base.attack is not None:
        raise RecipeError(f"method {base.name!r} attacks inputs already.")
    in_range(iterations, 1, 1000, "iterations")
    in_range(radius, 0.0, float("inf"), "radius")
    in_range(step_size, 0.0, float("inf"), "step_size")
    return dataclasses.replace(
        base,
        name=f"adversarial({base.name})",
        attack=Attack(radius=radius, step_size=step_size, iterations=iterations),
    )
