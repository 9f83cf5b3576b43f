"""Budgets: exact, bounded, and equal to slow oracles."""

from __future__ import annotations

import functools
import math
import random

import pytest
import torch

from sparsify.errors import AllocationError
from sparsify.parts.allocation import (
    ALLOCATIONS,
    Layer,
    by_gradient,
    erk,
    global_saliency,
    lamp_score,
    name_of,
    needs_gradient,
    uniform,
)


def layers(seed: int) -> dict[str, Layer]:
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for i in range(rng.randint(1, 6)):
        shape = (rng.randint(1, 12), rng.randint(1, 12), *rng.choice([(), (3, 3)]))
        weight, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
        result[f"w{i}"] = Layer(shape, weight=weight, gradient=gradient)
    return result


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("seed", range(40))
def test_budgets_are_exact_and_bounded(name, seed):
    table, density = layers(seed), random.Random(seed + 99).uniform(0.1, 1.0)
    total = sum(layer.size for layer in table.values())
    if round(density * total) < len(table):
        pytest.skip("too few positions to keep one per layer")
    budgets = ALLOCATIONS[name](table, density)
    assert sum(budgets.values()) == round(density * total)
    assert all(1 <= budgets[n] <= layer.size for n, layer in table.items())


def test_uniform_by_hand():
    assert uniform({"a": Layer((4, 5)), "b": Layer((10, 10))}, 0.25) == {"a": 5, "b": 25}


def test_erk_by_hand_with_a_layer_that_becomes_dense():
    # raw a: (1+2)/2 = 1.5, raw b: (10+10)/100 = 0.2; at density 0.2 of 102 -> 20 positions: eps = 20/(3+20) = 0.87 and
    # 1.5 * 0.87 > 1, so a is dense (2) and b gets the other 18.
    assert erk({"a": Layer((1, 2)), "b": Layer((10, 10))}, 0.2) == {"a": 2, "b": 18}


def test_erk_against_brute_force():
    table = {"a": Layer((8, 4, 3, 3)), "b": Layer((16, 8, 3, 3)), "c": Layer((10, 16))}
    density = 0.2
    raw = {n: sum(x.shape) / math.prod(x.shape) for n, x in table.items()}
    low, high = 0.0, 1e6
    for _ in range(200):  # the scale at which min(1, raw * scale) spends the budget
        middle = (low + high) / 2
        spent = sum(min(1.0, raw[n] * middle) * x.size for n, x in table.items())
        low, high = (middle, high) if spent < density * sum(x.size for x in table.values()) else (low, middle)
    budgets = erk(table, density)
    for n, x in table.items():
        assert abs(budgets[n] - min(1.0, raw[n] * low) * x.size) <= 1.0


def test_lamp_scores_against_a_loop():
    weight = torch.tensor([[3.0, -1.0], [2.0, 1.0]])
    flat = weight.reshape(-1).tolist()
    order = sorted(range(4), key=lambda i: (flat[i] ** 2, i))
    expected = [0.0] * 4
    for position, i in enumerate(order):
        expected[i] = flat[i] ** 2 / sum(flat[j] ** 2 for j in order[position:])
    assert torch.allclose(lamp_score(weight).reshape(-1), torch.tensor(expected).double())
    assert lamp_score(weight).max() == pytest.approx(1.0)


def test_a_density_below_one_unit_a_layer_names_the_lowest_that_works():
    with pytest.raises(AllocationError, match=r"lowest density that works is 0\.02"):
        uniform({"a": Layer((5, 10)), "b": Layer((5, 10))}, 0.005)


def test_a_pattern_that_fixes_its_density_keeps_it():
    table = {"a": Layer((4, 8), fixed_density=0.5), "b": Layer((4, 8))}
    assert uniform(table, 0.25) == {"a": 16, "b": 8}


def test_another_density_than_the_one_every_pattern_fixes_is_refused():
    table = {"a": Layer((4, 8), fixed_density=0.5), "b": Layer((6, 8), fixed_density=0.5)}
    assert uniform(table, 0.5) == {"a": 16, "b": 24}
    with pytest.raises(AllocationError, match=r"fixes its density, 0\.5 in all; density 0\.1 was asked for"):
        uniform(table, 0.1)


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("seed", range(10))
def test_pruning_never_gives_a_layer_more_than_it_has(name, seed):
    """Active weights of 0 tie with inactive ones; the total is exact, and each budget within the active count."""
    generator, layers = torch.Generator().manual_seed(seed), {}
    for index, shape in enumerate([(8, 4, 3, 3), (16, 8), (40, 30)]):
        mask = torch.rand(shape, generator=generator) < 0.4
        moved = torch.rand(shape, generator=generator) < 0.5  # the other active weights are still 0
        weight = torch.randn(shape, generator=generator) * mask * moved
        layers[f"w{index}"] = Layer(shape, weight=weight, mask=mask, gradient=torch.randn(shape, generator=generator))
    whole, active = sum(x.size for x in layers.values()), sum(x.most for x in layers.values())
    for share in (0.9, 0.6, 0.1):
        density = share * active / whole
        budgets = ALLOCATIONS[name](layers, density)
        assert sum(budgets.values()) == round(density * whole)
        assert all(1 <= budget <= layers[n].most for n, budget in budgets.items())


def test_a_layer_at_its_most_by_hand():
    # Two layers of four; the first has one active position left. Half of eight: it can give one, the other all but one of its own.
    first = Layer((2, 2), weight=torch.zeros(2, 2), mask=torch.tensor([[True, False], [False, False]]))
    second = Layer((2, 2), weight=torch.zeros(2, 2), mask=torch.ones(2, 2, dtype=torch.bool))
    assert uniform({"a": first, "b": second}, 0.5) == {"a": 1, "b": 3}
    assert ALLOCATIONS["global_magnitude"]({"a": first, "b": second}, 0.5) == {"a": 1, "b": 3}


def test_what_coarse_layers_leave_over_is_not_piled_on_the_finest():
    # Units of 16 input channels; uniform 0.1 is below the floors 0.25 (64 channels) and 0.125 (128 channels). What four layers of 256
    # channels (0.0625 or 0.125) cannot take goes to the middle ones; filling up by the finest units would make fine0 wholly dense.
    table = {f"fine{i}": Layer((64, 64, 3, 3), 64 * 16 * 9) for i in range(2)}
    table |= {f"middle{i}": Layer((128, 128, 3, 3), 128 * 16 * 9) for i in range(2)}
    table |= {f"coarse{i}": Layer((256, 256, 3, 3), 256 * 16 * 9) for i in range(4)}
    budgets = uniform(table, 0.1)
    assert [budgets[name] // layer.unit for name, layer in table.items()] == [1, 1, 2, 2, 2, 1, 1, 1]
    assert abs(round(0.1 * sum(layer.size for layer in table.values())) - sum(budgets.values())) < 64 * 16 * 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_ranking_over_layers_is_that_of_a_stable_sort(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (40, 30), "b": (7, 5, 3, 3), "c": (300, 200)}
    weights = {
        name: (torch.randn(shape, generator=generator) * 8).round() for name, shape in shapes.items()
    }  # many ties
    layers = {name: Layer(shapes[name], weight=weight.to(dtype)) for name, weight in weights.items()}
    for density in (0.01, 0.3, 0.97):
        flat = torch.cat([weight.abs().reshape(-1) for weight in weights.values()])
        owner = torch.cat([torch.full((layer.size,), i) for i, layer in enumerate(layers.values())])
        chosen = owner[flat.sort(descending=True, stable=True).indices[: round(density * len(flat))]]
        expected = dict(zip(layers, torch.bincount(chosen, minlength=3).clamp_min(1).tolist(), strict=True))
        assert ALLOCATIONS["global_magnitude"](layers, density) == expected


def test_weights_that_are_not_a_number_are_not_ranked():
    layers = {"a": Layer((2, 2), weight=torch.tensor([[1.0, float("nan")], [2.0, 3.0]]))}
    with pytest.raises(AllocationError, match=r"scores of 'a' hold NaN"):
        ALLOCATIONS["global_magnitude"](layers, 0.5)


A, B = torch.tensor([[4.0, -3.0], [0.5, 0.1]]), torch.tensor([[1.0, 2.0], [-2.0, 1.0]])
A_GRADIENT, B_GRADIENT = torch.tensor([[0.1, 0.0], [-2.0, 0.0]]), torch.tensor([[-3.0, 0.5], [1.0, 0.0]])


def saliencies(**given):
    """|w g| is 0.4 0 | 1 0 in the first layer, and 3 1 | 2 0 in the second."""
    return {
        "a": Layer((2, 2), weight=A, gradient=A_GRADIENT, **given),
        "b": Layer((2, 2), weight=B, gradient=B_GRADIENT),
    }


def test_saliency_by_hand():
    table = saliencies()
    assert global_saliency(table, 3 / 8) == {"a": 1, "b": 2}  # 3 and 2; the one position that a keeps is 1
    assert global_saliency(table, 5 / 8) == {"a": 2, "b": 3}  # 3, 2, 1, 1 and 0.4
    assert ALLOCATIONS["global_magnitude"](table, 3 / 8) == {"a": 2, "b": 1}  # 4, 3 and 2


def test_positions_of_saliency_0_come_last_by_magnitude():
    # After the five come those of 0: 3 and 0.1 in the first layer, 1 in the second.
    assert global_saliency(saliencies(), 6 / 8) == {"a": 3, "b": 3}
    assert global_saliency(saliencies(), 7 / 8) == {"a": 3, "b": 4}


def test_what_may_not_be_active_has_no_saliency():
    table = saliencies(mask=torch.tensor([[True, True], [False, True]]))
    assert global_saliency(table, 4 / 8) == {"a": 1, "b": 3}
    assert global_saliency(table, 5 / 8) == {"a": 2, "b": 3}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saliencies_of_half_precision_do_not_vanish(dtype):
    small = 2.0**-14  # its square is below what half precision holds
    layers = {
        "a": Layer((1, 2), weight=torch.tensor([[2.0, 3.0]], dtype=dtype), gradient=torch.zeros(1, 2, dtype=dtype)),
        "b": Layer(
            (1, 2), weight=torch.full((1, 2), small, dtype=dtype), gradient=torch.full((1, 2), small, dtype=dtype)
        ),
    }
    assert global_saliency(layers, 3 / 4) == {"a": 1, "b": 2}


def test_no_gradient_is_refused():
    with pytest.raises(
        AllocationError, match=r"needs the dense gradient of 'a'; none was given\. Only a pruning during"
    ):
        global_saliency({"a": Layer((2, 2), weight=A)}, 0.5)


def test_marks_of_allocations_that_need_gradients():
    found = {name for name, allocation in ALLOCATIONS.items() if needs_gradient(allocation)}
    assert found == {"global_saliency"}
    partial = functools.partial(global_saliency)
    assert needs_gradient(partial) and name_of(partial) == "global_saliency"
    assert not needs_gradient(lambda layers, density: global_saliency(layers, density))
    assert needs_gradient(by_gradient(lambda layers, density: global_saliency(layers, density)))
