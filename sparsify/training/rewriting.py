"""Prepares a program for a method: inserts masks and taps, applies the method's own passes, and adds new parameters to the optimizer."""

from __future__ import annotations

import torch

from sparsify.errors import TrainingError
from sparsify.ir import Program, Stage
from sparsify.methods import Method
from sparsify.parts.corrections import Correction
from sparsify.passes import Pipeline
from sparsify.training.groups import adopt
from sparsify.training.initial_masks import insert_masks
from sparsify.training.kept_masks import keep_masks
from sparsify.training.optimizers import Optimizers
from sparsify.training.rounds import Rounds


def rewrite(
    method: Method,
    program: Program,
    optimizers: Optimizers,
    rounds: Rounds,
    correction: Correction | None,
    generator: torch.Generator,
) -> dict[str, str]:
    """Rewrite a program in place.

    Args:
        method: gives masks and passes.
        program: of stage TRACED; or of stage MASKED, to continue from its masks.
        optimizers: parameters that passes create are added to them.
        rounds: the rounds of the method.
        correction: the correction of the method.
        generator: generator of random masks, on the CPU.

    Returns:
        By name of each maskable weight without a mask, the reason.

    Raises:
        TrainingError: If the optimizer does not support what the method does, or existing masks do not fit the method.
        PatternError: If the pattern does not fit a weight.
        AllocationError: If the density cannot be met.
    """
    left_dense = dict[str, str]()
    tapped = rounds.needs_gradient or (correction is not None and correction.dense)
    if program.stage is Stage.MASKED:
        left_dense = keep_masks(method, program, optimizers, tapped=tapped, prunes=rounds.prunes)
    elif method.initial != "dense" or method.topology is not None:
        left_dense = insert_masks(method, program, optimizers, generator, tapped=tapped)
    Pipeline(method.passes).apply(program)
    added = adopt(program, optimizers)
    if optimizers.evaluates and (added or correction):
        raise TrainingError(
            f"method {method.name!r} {'corrects gradients' if correction else 'adds parameters'}, which an optimizer that "
            f"evaluates the batch itself (LBFGS) does not allow. Attach another optimizer, such as SGD or AdamW."
        )
    return left_dense
