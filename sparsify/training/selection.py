"""What allocations and patterns are told about the masked weights of a program, and masks chosen by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from sparsify.ir import Program
from sparsify.ir.channels import written_together
from sparsify.ir.sites import masks_and_patterns
from sparsify.parts.allocation import Layer
from sparsify.parts.patterns import Pattern, parse_pattern
from sparsify.parts.patterns.grouped import select_together


def patterns_of(program: Program) -> dict[str, Pattern]:
    """Return the pattern of every masked weight, by name."""
    return {weight: parse_pattern(pattern) for weight, (_, pattern) in masks_and_patterns(program).items()}


def layers_of(program: Program, *, graded: bool = False) -> dict[str, Layer]:
    """Describe all masked weights for an allocation before training.

    With ``graded``, gradients of 1 stand in for those that rounds will have, for an allocation that reads them: whether a density can be
    met does not depend on them.
    """
    patterns = patterns_of(program)
    weights = {name: program.weight(name).detach() for name in patterns}
    ones = {name: weight.new_ones(()).expand_as(weight) for name, weight in weights.items()}
    return layers(patterns, weights, gradients=ones if graded else None)


def layers(
    patterns: Mapping[str, Pattern],
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    gradients: Mapping[str, Tensor] | None = None,
) -> dict[str, Layer]:
    """Describe weights for an allocation; with ``masks``, only positions that are True in them may be active."""
    found: dict[str, Layer] = {}
    for name, pattern in patterns.items():
        weight = weights[name]
        shape = tuple(weight.shape)
        mask = None if masks is None else masks[name]
        gradient = None if gradients is None else gradients[name]
        found[name] = Layer(shape, pattern.unit_size(shape), pattern.fixed_density(shape), weight, mask, gradient)
    return found


def shapes_of(patterns: Mapping[str, Pattern], masks: Mapping[str, Tensor]) -> dict[str, Layer]:
    """Describe weights for an allocation that is to depend on shapes and patterns only."""
    shapes = {name: tuple(masks[name].shape) for name in patterns}
    return {n: Layer(shapes[n], p.unit_size(shapes[n]), p.fixed_density(shapes[n])) for n, p in patterns.items()}


def select_masks(
    program: Program, patterns: Mapping[str, Pattern], scores: Callable[[str], Tensor], budgets: Mapping[str, int]
) -> Iterator[tuple[str, Tensor]]:
    """Yield, by weight, the mask of highest score; weights with learned groups that share one order of outputs are selected together."""
    for names in together(program, patterns):
        yield from select_together(
            {name: patterns[name] for name in names}, {name: scores(name) for name in names}, budgets
        ).items()


def together(program: Program, patterns: Mapping[str, Pattern]) -> list[tuple[str, ...]]:
    """Group weights that share their learned groups; every other weight is a group of its own."""
    learned = [name for name, pattern in patterns.items() if pattern.is_learned]
    sets = {name: names for names in written_together(program, learned) for name in names} if learned else {}
    return list(dict.fromkeys(sets.get(name, (name,)) for name in patterns))
