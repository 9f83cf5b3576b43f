"""Budgets over random shapes, units and densities: exact, or refused; never a wrong count."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsify.errors import AllocationError
from sparsify.parts.allocation import ALLOCATIONS, Layer, needs_gradient
from sparsify.passes import Pipeline
from tests.cases import case
from tests.properties.steady import steady

DENSITIES = st.floats(1e-4, 1.0, allow_nan=False)


@st.composite
def tables(draw: st.DrawFn, units: tuple[int, ...] = (1,)) -> dict[str, Layer]:
    """Layers of random shapes whose first dimension holds whole units."""
    layers = {}
    for index in range(draw(st.integers(1, 6))):
        unit = draw(st.sampled_from(units))
        shape = (unit * draw(st.integers(1, 9)), draw(st.integers(1, 9)), *draw(st.sampled_from([(), (3,), (3, 3)])))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
        weight, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
        if draw(st.booleans()):
            weight[: shape[0] // 2] = 0.0  # ties
        layers[f"w{index}"] = Layer(shape, unit, weight=weight, gradient=gradient)
    return layers


def allocated(name: str, layers: dict[str, Layer], density: float) -> dict[str, int] | None:
    """The budgets, or None where they are refused, which must be for want of positions alone."""
    try:
        return ALLOCATIONS[name](layers, density)
    except AllocationError:
        total = round(density * sum(layer.size for layer in layers.values()))
        assert total < sum(layer.unit for layer in layers.values())
        return None


@pytest.mark.parametrize("name", ALLOCATIONS)
@steady
@given(layers=tables(), density=DENSITIES)
def test_unstructured_budgets_are_exact(name, layers, density):
    budgets = allocated(name, layers, density)
    if budgets is not None:
        assert list(budgets) == list(layers)
        assert all(1 <= budgets[n] <= layer.size for n, layer in layers.items())
        assert sum(budgets.values()) == round(density * sum(layer.size for layer in layers.values()))


@pytest.mark.parametrize("name", ALLOCATIONS)
@steady
@given(layers=tables((1, 2, 4, 8)), density=DENSITIES)
def test_budgets_of_blocks_are_whole_and_within_one_unit(name, layers, density):
    budgets = allocated(name, layers, density)
    if budgets is not None:
        assert all(layer.unit <= budgets[n] <= layer.size for n, layer in layers.items())
        assert all(budgets[n] % layer.unit == 0 for n, layer in layers.items())
        target = round(density * sum(layer.size for layer in layers.values()))
        assert abs(sum(budgets.values()) - target) < max(layer.unit for layer in layers.values())


@pytest.mark.parametrize("name", ["uniform", "er", "erk"])
@steady
@given(layers=tables(), density=DENSITIES)
def test_equal_layers_differ_by_at_most_one(name, layers, density):
    first = next(iter(layers.values()))
    equal = {f"w{i}": Layer(first.shape) for i in range(4)}
    budgets = allocated(name, equal, density)
    assert budgets is None or max(budgets.values()) - min(budgets.values()) <= 1


@steady
@given(layers=tables(), density=DENSITIES)
def test_the_global_ranking_keeps_the_largest(layers, density):
    budgets = allocated("global_magnitude", layers, density)
    if budgets is None:
        return
    flat = torch.cat([layer.weight.abs().reshape(-1) for layer in layers.values() if layer.weight is not None])
    threshold = float(flat.sort(descending=True).values[sum(budgets.values()) - 1])
    for name, layer in layers.items():
        assert layer.weight is not None
        above = int((layer.weight.abs() > threshold).sum())
        at_least = int((layer.weight.abs() >= threshold).sum())
        # A layer may be held above its share by its last unit, and another below by what that costs.
        assert above - len(layers) <= budgets[name] <= max(at_least, 1)


@pytest.mark.parametrize("allocation", [name for name, found in ALLOCATIONS.items() if not needs_gradient(found)])
@pytest.mark.parametrize(("pattern", "unit"), [("unstructured", 1), ("block:2x1", 2), ("block:2x4", 8)])
def test_inserted_masks_have_the_budget(allocation, pattern, unit):
    found = case("mlp")
    keep = "5.weight"  # ten outputs
    program = found.trace()
    for density in (0.02, 0.1, 1 / 3, 0.5, 0.77, 1.0):
        options = f"pattern={pattern} density={density} allocation={allocation} keep-dense={keep}"
        masked = Pipeline.parse(f"insert-masks{{{options}}}")(program)
        costs = masked.costs()
        assert costs.maskable == 64 * 32 + 32 * 16
        assert abs(costs.active - round(density * costs.maskable)) < unit
        assert costs.active == sum(int(mask.sum()) for mask in masked.masks().values())
        assert math.isclose(costs.density, costs.active / costs.maskable)
