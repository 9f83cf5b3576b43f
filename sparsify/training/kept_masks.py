"""Lets a method continue from masks that a program already has, if they are what the method would start from."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from sparsify.errors import TrainingError
from sparsify.ir import Program, surgery
from sparsify.methods import Method
from sparsify.parts.patterns import Grouped, Pattern, parse_pattern
from sparsify.passes import InsertGradientTaps, LowerMasks, Pass, Pipeline
from sparsify.training.inactive import clear_inactive
from sparsify.training.optimizers import Optimizers
from sparsify.training.selection import patterns_of

NEAR = 1e-6
"""Densities that differ by at most this count as equal; messages print six digits."""


def keep_masks(
    method: Method, program: Program, optimizer: Optimizers, *, tapped: bool, prunes: bool
) -> dict[str, str]:
    """Prepare a masked program for a method: keep its masks, set inactive weights to 0, and insert missing taps.

    Args:
        method: its density and pattern should fit the masks.
        program: of stage MASKED.
        optimizer: its state is cleared where weights are inactive.
        tapped: whether the method reads dense gradients.
        prunes: whether the method reaches its density only at the end.

    Returns:
        By name of each maskable weight without a mask, the reason.

    Raises:
        TrainingError: If density, pattern or ``keep_dense`` of the method do not fit the masks; the message names both sides.
    """
    patterns = patterns_of(program)
    _check_pattern(method, program, patterns)
    _check_density(method, program, patterns, prunes=prunes)
    with surgery.compiled_once(program):
        for name in patterns:
            clear_inactive(program, optimizer, name)
        taps: tuple[Pass, ...] = (InsertGradientTaps(),) if tapped and not program.taps() else ()
        Pipeline((*taps, LowerMasks())).apply(program)
    without = (site for site in program.maskable() if site.name not in patterns)
    return {site.name: site.skip or "the program that was attached has no mask for it" for site in without}


def _check_pattern(method: Method, program: Program, patterns: Mapping[str, Pattern]) -> None:
    wanted, other = parse_pattern(method.pattern), dict[str, str]()
    for name, pattern in patterns.items():
        fitted = wanted.fitted(tuple(program.weight(name).shape))
        fits = {str(fitted), str(fitted.contiguous())} if isinstance(fitted, Grouped) else {str(fitted)}
        if str(pattern) not in fits:
            other[name] = str(pattern)
    if other:
        named = ", ".join(f"{name} {pattern}" for name, pattern in [*other.items()][:4])
        raise TrainingError(
            f"the masks of program {program.name!r} have other patterns ({named}) than method {method.name!r} asks for "
            f"({method.pattern!r}), and masks stay as they are at first. Attach with pattern={next(iter(other.values()))!r}, or start from "
            f"the program without masks."
        )
    for glob in method.keep_dense:
        masked = fnmatch.filter(patterns, glob)
        if masked:
            raise TrainingError(
                f"method {method.name!r} keeps {glob!r} dense, and program {program.name!r} has a mask for {masked[0]}. Leave the glob "
                f"out, or start from the program without masks."
            )


def _check_density(method: Method, program: Program, patterns: Mapping[str, Pattern], *, prunes: bool) -> None:
    dense = method.initial == "dense"
    begins = 1.0 if dense else method.initial_density or method.density
    wanted = method.density if prunes else begins
    costs = program.costs()
    unit = max(pattern.unit_size(tuple(program.weight(name).shape)) for name, pattern in patterns.items())
    more = costs.active - round(wanted * costs.maskable)
    if abs(more) <= max(unit, NEAR * costs.maskable) or (prunes and more > 0):
        return
    have = f"{costs.density:.6g}"
    if prunes:
        raise TrainingError(
            f"program {program.name!r} has masks of density {have}, and method {method.name!r} prunes to {wanted:.6g}: it would have to "
            f"add weights. Attach with a density below {have} (sparsity above {1 - costs.density:.6g}), or train on with "
            f"a method that keeps masks as they are, at density={have}."
        )
    advice, rounds = (
        f"Attach with density={have} (sparsity {1 - costs.density:.6g})",
        ", and its rounds keep the number of active weights",
    )
    if method.initial_density is not None:
        advice, rounds = f"Attach with initial_density={have}", ""
    if dense:
        advice = f"To train on with the masks as they are, attach a method that has no rounds, at density={have}"
    raise TrainingError(
        f"program {program.name!r} has masks of density {have}, and method {method.name!r} begins with {begins:.6g}: masks stay as they "
        f"are at first{rounds}. {advice}, or start from the program without masks."
    )
