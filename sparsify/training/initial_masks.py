"""Masks at the start of a run."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from sparsify.errors import SparsityWarning
from sparsify.ir import Program, surgery
from sparsify.ir.sites import mostly_dense
from sparsify.methods import Method
from sparsify.passes import InsertGradientTaps, InsertMasks, LowerMasks, Pass, Pipeline
from sparsify.training.inactive import clear_inactive
from sparsify.training.optimizers import Optimizers
from sparsify.training.selection import layers_of, patterns_of, select_masks


def insert_masks(
    method: Method, program: Program, optimizer: Optimizers, generator: torch.Generator, *, tapped: bool
) -> dict[str, str]:
    """Insert the masks with which the method begins, and lower them. Frozen weights stay dense.

    Args:
        method: gives pattern, allocation, density and scale.
        program: of stage TRACED.
        optimizer: its state is cleared where weights are inactive.
        generator: generator of random masks, on the CPU.
        tapped: whether to insert gradient taps too.

    Warns:
        SparsityWarning: If less than half of the model's weights can be masked.

    Returns:
        By name of each maskable weight without a mask, the reason.

    Raises:
        PatternError: If the pattern does not fit a weight.
        AllocationError: If the density cannot be met.
    """
    with surgery.compiled_once(program):
        (log,) = Pipeline((InsertMasks(pattern=method.pattern, keep_dense=method.keep_dense, keep_frozen=True),)).apply(
            program
        )
        if method.initial != "dense":
            kinds = patterns_of(program)
            density = method.density if method.initial_density is None else method.initial_density
            budgets = method.allocation(layers_of(program), density)

            def scores(name: str) -> Tensor:
                weight = program.weight(name).detach()
                noise = torch.rand(weight.shape, generator=generator)
                return weight.abs() if method.initial == "magnitude" else noise.to(weight.device)

            for name, mask in select_masks(program, kinds, scores, budgets):
                program.mask(name).copy_(mask)
        for name in program.masks():
            clear_inactive(program, optimizer, name)
            if method.initial_scale == "fan-in":
                _scale_to_fan_in(program, name)
        taps: tuple[Pass, ...] = (InsertGradientTaps(),) if tapped else ()
        Pipeline((*taps, LowerMasks())).apply(program)
    if said := mostly_dense(program):
        warnings.warn(said, SparsityWarning, stacklevel=4)
    return dict(log.skipped)


def _scale_to_fan_in(program: Program, name: str) -> None:
    """Scale each output [I, *K] of a weight [O, I, *K] to the sum of squares that it would have if all its inputs were active."""
    mask = program.mask(name).flatten(1)
    factor = (mask.shape[1] / mask.sum(dim=1).clamp_min(1)).sqrt()
    with torch.no_grad():
        weight = program.get_parameter(name)
        weight.mul_(factor.to(weight.dtype).view(-1, *(1,) * (weight.ndim - 1)))
