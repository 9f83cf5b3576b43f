"""Grouped shared fan-in, worked by hand, then as properties over seeds and shapes."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from sparsify.errors import AllocationError, PatternError
from sparsify.parts.allocation import ALLOCATIONS, Layer, needs_gradient, uniform
from sparsify.parts.patterns import parse_pattern
from sparsify.parts.patterns.grouped import Grouped, bound_together, select_together
from sparsify.parts.topology import update


def test_select_by_hand():
    scores = torch.tensor([[1.0, 0.0, 3.0], [1.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 4.0]])
    # sums of rows 0 and 1: 2, 0, 3; of rows 2 and 3: 0, 5, 4
    mask = Grouped(2).select(scores, 4)
    assert mask.int().tolist() == [[0, 0, 1], [0, 0, 1], [0, 1, 0], [0, 1, 0]]


def test_the_two_norms_by_hand():
    scores = torch.tensor([[2.0, 3.0], [2.0, 0.0]])
    assert Grouped(2).select(scores, 2).int().tolist() == [[1, 0], [1, 0]]
    assert Grouped(2, 1, "l2").select(scores, 2).int().tolist() == [[0, 1], [0, 1]]  # 9 against 8


def test_an_update_by_hand_exchanges_inside_each_group():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).bool()
    weight = torch.tensor([[1.0, 9.0, 0.0, 0.0], [1.0, 9.0, 0.0, 0.0], [0.0, 0.0, 8.0, 7.0], [0.0, 0.0, 8.0, 7.0]])
    gradient = torch.tensor([[0.0, 0.0, 1.0, 5.0], [0.0, 0.0, 5.0, 0.0], [0.0, 9.0, 0.0, 0.0], [9.0, 9.0, 0.0, 0.0]])
    # a quarter of the 4 active units is the weakest one, input 0 of the first group; summed gradients there: 0, 0, 6, 5
    new = update(mask, weight, gradient, 0.25, pattern=Grouped(2))
    assert new.int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize(
    "text",
    ["grouped:16", "grouped:32:l2", "grouped:4x2", "grouped:64x4", "grouped:16:learned", "grouped:8x2:l2:learned"],
)
@pytest.mark.parametrize("seed", range(12))
def test_selections_and_rounds_keep_count_and_pattern(text, seed):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    shape = rng.choice([(64, 48), (32, 64), (64, 64, 3, 3), (48, 32, 1, 1), (96, 40, 3)])
    parse_pattern(text).check(shape, "w")
    pattern = parse_pattern(text).fitted(shape)
    unit = pattern.unit_size(shape)
    budget = rng.randint(1, torch.Size(shape).numel() // unit) * unit
    mask = pattern.select(torch.randn(shape, generator=generator), budget)
    assert int(mask.sum()) == budget and pattern.holds(mask)
    bound = pattern.bound(mask)
    assert torch.equal(bound.expand(bound.reduce(mask), shape), mask)
    for regrow in (True, False):
        noise = [torch.rand(shape, generator=generator) for _ in range(2)]
        new = update(mask, *noise, rng.uniform(0, 0.9), pattern=pattern, regrow_dropped=regrow)
        assert int(new.sum()) == budget and pattern.holds(new)
    assert parse_pattern(str(pattern)) == pattern
    broken = mask.clone()
    broken.view(-1)[int((~mask).view(-1).nonzero()[0]) if not mask.all() else 0] ^= True
    assert not pattern.holds(broken)


def test_select_against_every_choice():
    scores = torch.rand(4, 5, generator=torch.Generator().manual_seed(3))
    chosen = float(scores[Grouped(2).select(scores, 8)].sum())
    pairs = list(itertools.combinations(range(5), 2))
    best = max(float(scores[:2, list(a)].sum() + scores[2:, list(b)].sum()) for a in pairs for b in pairs)
    assert chosen == pytest.approx(best)


@pytest.mark.parametrize(
    ("text", "shape", "fitted"),
    [
        ("grouped:64", (128, 64, 3, 3), "grouped:64"),
        ("grouped:64", (96, 64, 3, 3), "grouped:48"),
        ("grouped:64", (24, 64, 3, 3), "grouped:24"),
        ("grouped:64x8", (128, 64, 3, 3), "grouped:64"),
        ("grouped:64x8", (128, 784), "grouped:64x8"),
        ("grouped:64x8", (100, 84), "grouped:50x7"),
    ],
)
def test_sizes_adapt_to_the_weight(text, shape, fitted):
    assert str(parse_pattern(text).fitted(shape)) == fitted


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((64, 3, 7, 7), "3 input channels leave no choice"),
        ((10, 512), "10 outputs do not split"),
        ((97, 64), "97 outputs do not split"),
        ((104, 64, 3, 3), "104 outputs do not split"),
        ((64, 1), "single chunk"),
    ],
)
def test_what_it_cannot_apply_to_says_why(shape, reason):
    assert reason in str(Grouped(64).unsuited(shape))
    with pytest.raises(PatternError, match=reason):
        Grouped(64).check(shape, "w")


@pytest.mark.parametrize(("rows", "sizes"), [(7, "7"), (16, "16"), (64, "16 to 64")])
def test_the_sizes_that_groups_could_have_are_said_once(rows, sizes):
    assert Grouped(rows).unsuited((97, 64)) == f"its 97 outputs do not split into groups of {sizes}"


def resnet_like() -> dict[str, Layer]:
    shapes = [(64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (256, 128, 3, 3), (256, 256, 3, 3), (512, 256)]
    generator = torch.Generator().manual_seed(0)
    return {
        f"w{i}": Layer(s, Grouped(64).fitted(s).unit_size(s), None, torch.randn(s, generator=generator))
        for i, s in enumerate(shapes)
    }


@pytest.mark.parametrize("name", [key for key, found in ALLOCATIONS.items() if not needs_gradient(found)])
@pytest.mark.parametrize("density", [0.1, 0.2, 0.5, 1.0])
def test_budgets_are_whole_units_and_floors_are_paid_by_the_others(name, density):
    layers = resnet_like()
    budgets = ALLOCATIONS[name](layers, density)
    whole = sum(layer.size for layer in layers.values())
    assert all(layer.unit <= budgets[n] <= layer.size and budgets[n] % layer.unit == 0 for n, layer in layers.items())
    assert abs(sum(budgets.values()) - round(density * whole)) < min(layer.unit for layer in layers.values())


def test_floors_by_hand():
    # 1000 positions, density 0.2: 200. a's floor is 100 (its share would be 80); b and c share the other 100 evenly.
    layers = {"a": Layer((10, 40), unit=100), "b": Layer((10, 30)), "c": Layer((10, 30))}
    assert uniform(layers, 0.2) == {"a": 100, "b": 50, "c": 50}


def test_a_density_below_the_floors_names_the_layers_and_the_lowest_that_works():
    layers = {n: layer for n, layer in resnet_like().items() if n in ("w0", "w1", "w2")}
    with pytest.raises(AllocationError, match=r"w1 18432 of 73728.*lowest density that works is 0\.1786") as error:
        uniform(layers, 0.05)
    assert sum(ALLOCATIONS["erk"](layers, 0.1786).values()) == sum(layer.unit for layer in layers.values())
    assert "keep-dense" in str(error.value)


def test_learned_groups_by_hand():
    scores = torch.tensor([[9.0, 9, 0, 0], [0, 0, 9, 9], [8, 9, 1, 0], [0, 1, 9, 8]])
    pattern = parse_pattern("grouped:2:learned")
    mask = pattern.select(scores, 8)
    assert mask.int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]
    assert pattern.holds(mask) and not Grouped(2).holds(mask)
    bound = pattern.bound(mask)
    assert bound.order == (0, 2, 1, 3) and torch.equal(bound.expand(bound.reduce(mask), (4, 4)), mask)
    assert bound.groups(mask).int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert bound.contiguous() == Grouped(2)


def test_an_update_keeps_learned_groups():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]).bool()
    weight = torch.tensor([[1.0, 9, 0, 0], [0, 0, 8, 7], [1, 9, 0, 0], [0, 0, 8, 7]])
    gradient = torch.tensor([[0.0, 0, 1, 5], [0, 9, 0, 0], [0, 0, 5, 0], [9, 9, 0, 0]])
    new = update(mask, weight, gradient, 0.25, pattern=parse_pattern("grouped:2:learned"))
    assert new.int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_layers_with_one_order_of_outputs_get_the_same_groups():
    generator = torch.Generator().manual_seed(0)
    patterns = {name: parse_pattern("grouped:8:learned") for name in "ab"}
    scores = {"a": torch.rand(32, 24, generator=generator), "b": torch.rand(32, 40, generator=generator)}
    masks = select_together(patterns, scores, {"a": 32 * 6, "b": 32 * 10})
    orders = [pattern.order for pattern in bound_together(patterns, masks).values()]
    assert orders[0] == orders[1] and sorted(orders[0]) == list(range(32)) != list(orders[0])
    assert all(patterns[name].holds(masks[name]) for name in "ab")
    # One layer alone may choose better for itself; together is best for both.
    kept = {name: float(scores[name][masks[name]].sum()) for name in "ab"}
    contiguous = {
        name: float(scores[name][Grouped(8).select(scores[name], int(masks[name].sum()))].sum()) for name in "ab"
    }
    assert sum(kept.values()) > sum(contiguous.values())


def test_a_mask_without_groups_does_not_hold():
    pattern = parse_pattern("grouped:2:learned")
    assert not pattern.holds(torch.eye(4).bool())
    assert pattern.holds(torch.ones(4, 4).bool())
