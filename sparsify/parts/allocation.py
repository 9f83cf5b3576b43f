"""Allocation: how a density is split over weights. Every result is a table of exact integer budgets.

The target is ``round(density * positions)`` over the free layers. A layer whose pattern fixes its density gets exactly
that density; if the patterns fix every layer, any other density is refused. Shares are rounded to whole units by
largest remainder. The sum is exact if all units are single positions; with larger units it can miss the target by less
than the smallest unit that can still move. Each layer keeps at least one unit, and the other layers pay for that in
proportion to their shares.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from sparsify.errors import AllocationError, RecipeError
from sparsify.parts.top import top
from sparsify.registry import Registry

FIXED_TOLERANCE = 1e-3
"""Largest difference between a requested density and the one that a pattern fixes: 0.667 is accepted for 2/3."""


@dataclass(frozen=True)
class Layer:
    """What an allocation may know about a weight.

    Attributes:
        shape: [O, I, *K].
        unit: positions per unit, at least 1.
        fixed_density: the only density that its pattern allows, in (0, 1]; None if the pattern allows others.
        weight: its values, of ``shape``; None if they are not known.
        mask: bool, of ``shape``: the positions that may be active. Pruning gives it, because it only drops. None: all may.
        gradient: the dense gradient of one batch's loss, of ``shape``; given to allocations that are marked by `by_gradient`, else None.
    """

    shape: tuple[int, ...]
    unit: int = 1
    fixed_density: float | None = None
    weight: Tensor | None = None
    mask: Tensor | None = None
    gradient: Tensor | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @functools.cached_property
    def most(self) -> int:
        """The largest possible budget, in positions."""
        return self.size if self.mask is None else int(self.mask.count_nonzero())


Layers = Mapping[str, Layer]
Allocation = Callable[[Layers, float], dict[str, int]]
A = TypeVar("A", bound=Allocation)
_MARK = "needs_gradient"


def by_gradient(allocation: A) -> A:
    """Mark an allocation that reads `Layer.gradient`, as a decorator. Rounds of training then record dense gradients for it.

    Such an allocation can split the density of a pruning during training, and is refused elsewhere, because there are no gradients.
    """
    setattr(allocation, _MARK, True)
    return allocation


def needs_gradient(allocation: Allocation) -> bool:
    """Return whether an allocation is marked by `by_gradient`; a `functools.partial` of one is too."""
    while isinstance(allocation, functools.partial):
        allocation = allocation.func
    return bool(getattr(allocation, _MARK, False))


def name_of(allocation: Allocation) -> str:
    """Return the name of an allocation, for messages."""
    while isinstance(allocation, functools.partial):
        allocation = allocation.func
    return getattr(allocation, "__name__", type(allocation).__name__)


def uniform(layers: Layers, density: float) -> dict[str, int]:
    """Give every layer the same density."""
    return proportional(layers, density, {name: 1.0 for name in layers})


def er(layers: Layers, density: float) -> dict[str, int]:
    """Allocate by Erdős–Rényi: density proportional to (O + I) / (O * I) (Mocanu et al. 2018, arXiv:1707.04780)."""
    return proportional(
        layers, density, {n: (x.shape[0] + x.shape[1]) / (x.shape[0] * x.shape[1]) for n, x in layers.items()}
    )


def erk(layers: Layers, density: float) -> dict[str, int]:
    """Allocate by Erdős–Rényi kernel: density proportional to sum(shape) / prod(shape) (Evci et al. 2020, arXiv:1911.11134)."""
    return proportional(layers, density, {name: sum(layer.shape) / layer.size for name, layer in layers.items()})


def global_magnitude(layers: Layers, density: float) -> dict[str, int]:
    """Rank |w| over all layers together and count how many of the best each layer has."""
    return _ranked(layers, density, {name: _weight(name, layer).abs() for name, layer in layers.items()})


def lamp(layers: Layers, density: float) -> dict[str, int]:
    """Rank by w^2 divided by the sum of all squares in its layer that are at least w^2 (LAMP: Lee et al. 2021, arXiv:2010.07611, eq. 1)."""
    return _ranked(layers, density, {name: lamp_score(_weight(name, layer)) for name, layer in layers.items()})


@by_gradient
def global_saliency(layers: Layers, density: float) -> dict[str, int]:
    """Rank |w * dL/dw| over all layers together, the first-order change of the loss without w (Molchanov et al. 2017, arXiv:1611.06440).

    Molchanov et al. removed channels; for single weights, this is the score of SNIP (Lee et al. 2019, arXiv:1810.02340). L is the loss of
    the method on the batch of the round, so a loss that weighs classes splits the density by what its heavy classes need. Positions whose
    score is 0, such as the weights of outputs that no sample of the batch activates, rank below all others, by |w|. It needs a pruning
    during training; elsewhere there are no gradients, and it is refused.
    """
    return _ranked(layers, density, {name: saliency_score(name, layer) for name, layer in layers.items()})


_ALLOCATIONS: dict[str, Allocation] = {
    "uniform": uniform,
    "er": er,
    "erk": erk,
    "global_magnitude": global_magnitude,
    "lamp": lamp,
    "global_saliency": global_saliency,
}
ALLOCATIONS: Registry[Allocation] = Registry("allocation", RecipeError, _ALLOCATIONS)
"""How a density is split over weights, by name."""


def saliency_score(name: str, layer: Layer) -> Tensor:
    """Compute |w * dL/dw| of each position; where that is 0, -1 / |w|, which is below 0 and rises with |w|.

    Raises:
        AllocationError: If the weight or its gradient is not given.
    """
    if layer.gradient is None:
        raise AllocationError(
            f"ranking by saliency needs the dense gradient of {name!r}; none was given. Only a pruning during training has it, and "
            f"gives it to an allocation marked by sparsify.parts.allocation.by_gradient. Use global_magnitude elsewhere."
        )
    weight = _weight(name, layer).detach()
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    scores = (weight * layer.gradient.detach()).abs()
    return torch.where(scores == 0, (-1 / weight.abs()).clamp_min(torch.finfo(scores.dtype).min), scores)


def lamp_score(weight: Tensor) -> Tensor:
    """Compute the LAMP score of each position: float64, of the weight's shape. The largest score of a layer is 1."""
    squares = weight.detach().double().reshape(-1) ** 2
    order = squares.sort(stable=True).indices
    tail = squares[order].flip(0).cumsum(0).flip(0)
    scores = torch.zeros_like(squares)
    scores[order] = squares[order] / tail.clamp_min(torch.finfo(torch.float64).tiny)
    return scores.reshape(weight.shape)


def _target(layers: Layers, density: float) -> tuple[dict[str, int], dict[str, Layer], int]:
    """Return the budgets of the fixed layers, the free layers, and how many positions the free layers share."""
    if not 0.0 < density <= 1.0 or not math.isfinite(density):
        raise AllocationError(f"density should be a fraction in (0, 1], found {density}. Sparsity 0.9 is density 0.1.")
    if not layers:
        raise AllocationError("there is no weight to make sparse. Shorten keep-dense, or widen the option weights.")
    fixed = {
        n: round(layer.size * layer.fixed_density) for n, layer in layers.items() if layer.fixed_density is not None
    }
    free = {name: layer for name, layer in layers.items() if name not in fixed}
    total = round(density * sum(layer.size for layer in free.values()))
    floor = sum(layer.unit for layer in free.values())
    if not free:
        found = sum(fixed.values()) / sum(layer.size for layer in layers.values())
        if abs(found - density) > FIXED_TOLERANCE:
            raise AllocationError(
                f"the pattern of every weight fixes its density, {found:.4g} in all; density {density} was asked for. Ask for "
                f"{found:.4g} (sparsity {1 - found:.4g}), or choose another pattern."
            )
    if free and total < floor:
        whole = sum(layer.size for layer in free.values())
        largest = sorted(free, key=lambda name: free[name].unit, reverse=True)[:4]
        floors = ", ".join(f"{name} {free[name].unit} of {free[name].size}" for name in largest)
        lowest = math.ceil(10_000 * floor / whole) / 10_000 if floor / whole > 0.001 else floor / whole
        raise AllocationError(
            f"density {density} leaves {total} of {whole} positions for {len(free)} layers, which need at least {floor} to "
            f"keep one unit each (the most: {floors}). The lowest density that works is {lowest:.4g}: ask for that, put these layers into "
            f"keep-dense, or choose a finer pattern."
        )
    return fixed, free, total


def proportional(layers: Layers, density: float, raw: Mapping[str, float]) -> dict[str, int]:
    """Allocate densities proportional to ``raw``. Layers that would exceed density 1 become dense, and the rest is shared again."""
    fixed, free, total = _target(layers, density)
    shares = _shared(free, {name: raw[name] * layer.size for name, layer in free.items()}, total)
    budgets = {**fixed, **_round(free, shares, total)}
    return {name: budgets[name] for name in layers}


def _shared(layers: Mapping[str, Layer], weights: Mapping[str, float], total: int) -> dict[str, float]:
    """Split ``total`` in proportion to ``weights``; each layer gets at least one unit and at most its largest budget."""
    pinned: dict[str, float] = {}
    scale = 0.0
    while len(pinned) < len(layers):
        free = [name for name in layers if name not in pinned]
        whole = sum(weights[name] for name in free)
        scale = (total - sum(pinned.values())) / whole if whole else 0.0
        over = {n: float(layers[n].most) for n in free if weights[n] * scale > layers[n].most}
        under = {n: float(layers[n].unit) for n in free if weights[n] * scale < layers[n].unit}
        if not over and not under:
            break
        excess = sum(weights[n] * scale - size for n, size in over.items())
        lack = sum(unit - weights[n] * scale for n, unit in under.items())
        pinned |= over if excess >= lack else under
    return {name: pinned.get(name, weights[name] * scale) for name in layers}


def _round(layers: Mapping[str, Layer], shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Round shares to whole units by largest remainder, at least one per layer; then exchange coarse units for finer ones (`_even`)."""
    units = {n: min(max(int(shares[n] // x.unit), 1), x.most // x.unit) for n, x in layers.items()}
    spare = _settle(layers, shares, units, total - sum(units[n] * x.unit for n, x in layers.items()))
    while spare:
        step, trial = (1 if spare > 0 else -1), dict(units)
        movable = [n for n in layers if _may_move(layers[n], units[n], step)]
        if not movable:
            break
        coarse = min(movable, key=lambda n: layers[n].unit)
        trial[coarse] += step
        finer = {n: x for n, x in layers.items() if x.unit < layers[coarse].unit}
        left = _settle(finer, shares, trial, spare - step * layers[coarse].unit)
        if abs(left) >= abs(spare):
            break
        units, spare = trial, left
    _even(layers, shares, units, spare)
    return {name: units[name] * layer.unit for name, layer in layers.items()}


def _even(layers: Layers, shares: Mapping[str, float], units: dict[str, int], spare: int) -> None:
    """Exchange units between layers while that brings densities nearer to their shares and leaves less than a unit to spare.

    Without this, the finest layers would receive everything that coarse layers leave over: a convolution with 64 channels got twice
    its share.
    """
    if all(layer.unit == 1 for layer in layers.values()):
        return  # largest remainder is already the best rounding
    most = max(abs(spare), min(layer.unit for layer in layers.values()) - 1)

    def change(units: Mapping[str, int], name: str, step: int) -> float:
        x, now = layers[name], units[name]
        if not _may_move(x, now, step):
            return math.inf
        return (((now + step) * x.unit - shares[name]) / x.size) ** 2 - ((now * x.unit - shares[name]) / x.size) ** 2

    for _ in range(4 * len(layers)):
        best, found = -1e-9, None
        for first, layer in layers.items():
            for way in (-1, 1):
                trial, left, gain = (
                    {**units, first: units[first] + way},
                    spare - way * layer.unit,
                    change(units, first, way),
                )
                while abs(left) > most and gain < best:
                    step = 1 if left > 0 else -1
                    fits = [n for n, x in layers.items() if n != first and abs(left - step * x.unit) < abs(left)]
                    if not fits:
                        break
                    name = min(fits, key=lambda n: change(trial, n, step))
                    gain += change(trial, name, step)
                    trial[name] += step
                    left -= step * layers[name].unit
                if abs(left) <= most and gain < best:
                    best, found = gain, (trial, left)
        if found is None:
            return
        units.update(found[0])
        spare = found[1]


def _settle(layers: Mapping[str, Layer], shares: Mapping[str, float], units: dict[str, int], spare: int) -> int:
    """Give (or take) single units by largest remainder, each no larger than the spare positions; return how many positions stay spare."""
    step = 1 if spare > 0 else -1
    names = list(layers)

    def urgency(index: int) -> tuple[float, int]:  # ties go to the first layer
        name = names[index]
        return -step * (shares[name] / layers[name].unit - units[name]), index

    queue = [urgency(index) for index in range(len(names))]
    heapq.heapify(queue)
    while spare and queue:
        _, index = queue[0]
        name = names[index]
        if layers[name].unit > abs(spare) or not _may_move(layers[name], units[name], step):
            heapq.heappop(queue)  # for good: the spare positions only shrink, and units move in one direction
            continue
        units[name] += step
        spare -= step * layers[name].unit
        heapq.heapreplace(queue, urgency(index))
    return spare


def _may_move(layer: Layer, units: int, step: int) -> bool:
    return units < layer.most // layer.unit if step > 0 else units > 1


def _ranked(layers: Layers, density: float, scores: Mapping[str, Tensor]) -> dict[str, int]:
    """Give each layer one unit, then count per layer how many of the globally highest scores it has; blocks count as whole units."""
    fixed, free, total = _target(layers, density)
    if free:
        ranked = [_candidates(name, layer, scores[name]) for name, layer in free.items()]
        chosen = top(torch.cat(ranked), total).split([len(values) for values in ranked])
        counts = [float(part.count_nonzero()) for part in chosen]
        fixed |= _round(free, _shared(free, dict(zip(free, counts, strict=True)), total), total)
    return {name: fixed[name] for name in layers}


def _candidates(name: str, layer: Layer, scores: Tensor) -> Tensor:
    """Return scores, 1-d, on the CPU; positions that may not be active rank below all others."""
    scores = scores.detach().reshape(-1).cpu()
    if scores.isnan().any():
        raise AllocationError(f"the scores of {name!r} hold NaN, so they cannot be ranked. Start from finite weights.")
    return scores if layer.mask is None else scores.masked_fill(~layer.mask.reshape(-1).cpu(), -torch.inf)


def _weight(name: str, layer: Layer) -> Tensor:
    if layer.weight is None:
        raise AllocationError(
            f"ranking by magnitude needs the values of {name!r}; none were given. Use erk or uniform."
        )
    return layer.weight
