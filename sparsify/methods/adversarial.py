"""Adversarial training, around any method."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method, in_range
from sparsify.parts.attacks import Attack


@checked_method
def adversarial(base: Method, *, radius: float = 8 / 255, step_size: float = 2 / 255, iterations: int = 10) -> Method:
    """Train on inputs that projected gradient descent made hard (Madry et al. 2018, arXiv:1706.06083).

    What it raises is the loss of the task: of classification cross-entropy, of a regression the squared error, of a custom task your own.

    Each batch is attacked from a random start in the box, by gradients of the eval phase, so that the attack leaves running
    statistics and dropout alone. Attacks belong to the loss: evaluated again at other weights, a batch is attacked again at those
    weights from the same start, so that the correction of `agent` has the expected value 0 under attack too (a correction whose two
    terms see inputs made at different weights has not).

    Args:
        base: any method.
        radius: of the box, in units of the model's inputs; 8/255 is for images in [0, 1] (the AGENT repository's robust runs).
            Where inputs are normalised, divide by their deviation.
        step_size: of an iteration, same source.
        iterations: same source; each costs a forward and a backward pass, which are counted.

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
