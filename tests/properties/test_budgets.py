"""Budgets are exact or refused; patterns hold through rounds; schedules stay in their bounds. Many seeds each."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from sparsify.errors import AllocationError
from sparsify.parts.allocation import ALLOCATIONS, Layer
from sparsify.parts.patterns import Pattern, parse_pattern
from sparsify.parts.schedules import constant, cosine, cubic, every, linear
from sparsify.parts.topology import drop, grow, update

SEEDS = range(30)
PATTERNS = ("unstructured", "block:2x1", "block:1x4", "block:4x4", "nm:1:4", "nm:2:4")


def drawn_shapes(rng: random.Random, *, multiple: int = 1) -> dict[str, tuple[int, ...]]:
    """Up to six weights; outputs and inputs are multiples of ``multiple``."""
    shapes = {}
    for index in range(rng.randint(1, 6)):
        kernel = rng.choice([(), (), (3, 3), (1, 1), (5,)])
        shapes[f"layer{index}.weight"] = (multiple * rng.randint(1, 12), multiple * rng.randint(1, 12), *kernel)
    return shapes


def drawn_layers(rng: random.Random, pattern: Pattern, shapes: dict[str, tuple[int, ...]]) -> dict[str, Layer]:
    generator = torch.Generator().manual_seed(rng.randint(0, 2**31))
    layers = {}
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator)
        weight = rng.choice([weight, weight.sign(), torch.zeros(shape)])  # many ties; nothing but ties
        layers[name] = Layer(shape, pattern.unit_size(shape), pattern.fixed_density(shape), weight)
    return layers


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("seed", SEEDS)
def test_single_positions_are_counted_exactly_or_refused(seed, allocation):
    rng = random.Random(seed)
    layers = drawn_layers(rng, parse_pattern("unstructured"), drawn_shapes(rng))
    total = sum(layer.size for layer in layers.values())
    for density in (rng.random() or 0.5, 10 ** rng.uniform(-4, 0), 1.0, 1 / total):
        try:
            budgets = ALLOCATIONS[allocation](layers, density)
        except AllocationError:
            assert round(density * total) < len(layers), "refused although every layer could keep a position"
            continue
        assert list(budgets) == list(layers)
        assert sum(budgets.values()) == round(density * total)
        for name, budget in budgets.items():
            assert isinstance(budget, int)
            assert 1 <= budget <= layers[name].size


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("pattern", ["block:2x1", "block:1x4", "block:4x4"])
@pytest.mark.parametrize("seed", range(10))
def test_blocks_are_counted_in_whole_units(seed, pattern, allocation):
    rng, kind = random.Random(seed), parse_pattern(pattern)
    layers = drawn_layers(rng, kind, drawn_shapes(rng, multiple=4))
    total, unit = sum(layer.size for layer in layers.values()), kind.unit_size(())
    for density in (rng.uniform(0.05, 1.0), 10 ** rng.uniform(-3, 0), 1.0):
        try:
            budgets = ALLOCATIONS[allocation](layers, density)
        except AllocationError:
            assert round(density * total) < unit * len(layers)
            continue
        assert abs(sum(budgets.values()) - round(density * total)) < unit
        for name, budget in budgets.items():
            assert budget % unit == 0
            assert unit <= budget <= layers[name].size


@pytest.mark.parametrize("density", [0.0, -0.1, 1.0000001, 2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_impossible_densities_are_refused(allocation, density):
    with pytest.raises(AllocationError, match=r"\(0, 1\]"):
        ALLOCATIONS[allocation]({"a": Layer((4, 4), weight=torch.ones(4, 4))}, density)


@pytest.mark.parametrize("allocation", ["uniform", "er", "erk"])
@pytest.mark.parametrize("seed", range(10))
def test_more_density_never_takes_much_from_a_layer(seed, allocation):
    """Largest remainders may move a layer by one position, not more."""
    rng = random.Random(seed)
    layers = drawn_layers(rng, parse_pattern("unstructured"), drawn_shapes(rng))
    low, high = sorted((rng.uniform(0.2, 1.0), rng.uniform(0.2, 1.0)))
    less, more = (ALLOCATIONS[allocation](layers, density) for density in (low, high))
    assert all(more[name] >= less[name] - 1 for name in layers)


def drawn_scores(generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Half of the time with many ties."""
    scores = torch.rand(shape, generator=generator)
    return scores if torch.rand((), generator=generator) < 0.5 else (scores * 4).floor()


@pytest.mark.parametrize("regrow_dropped", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", range(8))
def test_patterns_and_counts_hold_through_rounds(seed, pattern, regrow_dropped):
    rng, kind = random.Random(seed), parse_pattern(pattern)
    generator = torch.Generator().manual_seed(seed)
    shape = next(iter(drawn_shapes(rng, multiple=4).values()))
    size, count = kind.unit_size(shape), torch.Size(shape).numel()
    fixed = kind.fixed_density(shape)
    budget = round(count * fixed) if fixed is not None else size * rng.randint(1, count // size)
    mask = kind.select(drawn_scores(generator, shape), budget)
    for _ in range(5):
        assert mask.dtype is torch.bool
        assert kind.holds(mask)
        assert int(mask.count_nonzero()) == budget
        before = mask.clone()
        fraction = rng.choice([0.0, 0.3, rng.random(), 1.0])
        new = update(
            mask,
            drawn_scores(generator, shape),
            drawn_scores(generator, shape),
            fraction,
            pattern=kind,
            regrow_dropped=regrow_dropped,
        )
        assert torch.equal(mask, before), "a round may not change the mask it was given"
        assert fraction > 0.0 or torch.equal(new, mask)
        assert int((mask & ~new).count_nonzero()) <= fraction * budget
        mask = new


@pytest.mark.parametrize("pattern", ["unstructured", "block:2x1", "block:4x4"])
@pytest.mark.parametrize("seed", range(8))
def test_drop_and_grow_agree_with_a_slow_ranking(seed, pattern):
    rng, kind = random.Random(seed), parse_pattern(pattern)
    generator = torch.Generator().manual_seed(seed)
    shape = next(iter(drawn_shapes(rng, multiple=4).values()))
    units = torch.Size(shape).numel() // kind.unit_size(shape)
    mask = kind.select(drawn_scores(generator, shape), kind.unit_size(shape) * rng.randint(0, units))
    scores = drawn_scores(generator, shape)
    active, pooled = kind.reduce(mask).tolist(), kind.pool(scores).tolist()
    inside = sorted((i for i in range(units) if active[i]), key=lambda i: (pooled[i], -i))
    outside = sorted((i for i in range(units) if not active[i]), key=lambda i: (-pooled[i], i))
    dropped, grown = rng.randint(0, len(inside)), rng.randint(0, len(outside))
    want = {i for i in range(units) if active[i]} - set(inside[:dropped])
    assert kind.reduce(drop(mask, scores, dropped, pattern=kind)).nonzero()[:, 0].tolist() == sorted(want)
    want = {i for i in range(units) if active[i]} | set(outside[:grown])
    assert kind.reduce(grow(mask, scores, grown, pattern=kind)).nonzero()[:, 0].tolist() == sorted(want)
    with pytest.raises(ValueError, match="cannot drop"):
        drop(mask, scores, len(inside) + 1, pattern=kind)
    with pytest.raises(ValueError, match="cannot grow"):
        grow(mask, scores, len(outside) + 1, pattern=kind)


@pytest.mark.parametrize("seed", SEEDS)
def test_schedules_are_monotone_and_bounded(seed):
    rng = random.Random(seed)
    first, last = rng.random(), rng.random()
    start, stop = sorted(rng.sample(range(1, 300), 2))
    ends = {
        cosine(first, stop, end=last): stop,
        linear(first, last, stop_at=stop): stop,
        cubic(first, last, start_at=start, stop_at=stop): stop,
        constant(first): 0,
    }
    for schedule, end in ends.items():
        values = [schedule(step) for step in range(400)]
        low, high = min(first, last), max(first, last)
        assert all(low - 1e-12 <= value <= high + 1e-12 for value in values)
        falls = first >= last
        assert all((b <= a + 1e-12) if falls else (b >= a - 1e-12) for a, b in itertools.pairwise(values))
        assert values[0] == pytest.approx(first, abs=1e-12)
        assert all(value == values[end] for value in values[end:])
        assert values[end] == pytest.approx(first if end == 0 else last, abs=1e-12)
    assert cubic(first, last, start_at=start, stop_at=stop)(stop) == last


@pytest.mark.parametrize("seed", SEEDS)
def test_triggers_fire_in_their_window_alone(seed):
    rng = random.Random(seed)
    n, stop = rng.randint(1, 40), rng.randint(1, 400)
    start = rng.choice([None, rng.randint(1, 200)])
    fired = [step for step in range(1, 500) if every(n, start=start, stop=stop)(step)]
    assert fired == [step for step in range(1, stop) if step % n == 0 and step >= (n if start is None else start)]
