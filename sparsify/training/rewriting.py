"""A program as a method trains it: with masks and taps, the method's own passes, and their parameters in the optimizer."""

from __future__ import annotations

import torch

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.methods import Method
from sparsify.passes import Pipeline
from sparsify.training.groups import adopt
from sparsify.training.initial_masks import insert_masks
from sparsify.training.optimizers import Optimizers


def rewrite(
    method: Method,
    program: Program,
    optimizers: Optimizers,
    generator: torch.Generator,
    *,
    tapped: bool,
    corrects: bool,
) -> dict[str, str]:
    """Rewrite a program in place.

    Args:
        method: gives masks and passes.
        program: of stage TRACED.
        optimizers: parameters that passes add join them.
        generator: of random masks, on the CPU.
        tapped: insert gradient taps too.
        corrects: whether the method corrects gradients.

    Returns:
        Why each weight that could have a mask has none.

    Raises:
        TrainingError: If the optimizer does not allow what the method does.
        PatternError: If the pattern does not fit a weight.
        AllocationError: If the density cannot be met.
    """
    left_dense = dict[str, str]()
    if method.initial != "dense" or method.topology is not None:
        left_dense = insert_masks(method, program, optimizers, generator, tapped=tapped)
    Pipeline(method.passes).apply(program)
    added = adopt(program, optimizers)
    if optimizers.evaluates and (added or corrects):
        raise TrainingError(
            f"method {method.name!r} {'corrects gradients' if corrects else 'adds parameters'}, which an optimizer that "
            f"evaluates the batch itself (LBFGS) does not allow. Attach another optimizer, such as SGD or AdamW."
        )
    return left_dense
