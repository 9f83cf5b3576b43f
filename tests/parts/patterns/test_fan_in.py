"""Constant fan-in by hand and against loops: selection, exchange with ablated outputs, exact counts."""

from __future__ import annotations

import random

import pytest
import torch

from sparsify.errors import PatternError
from sparsify.parts.exchange import exchange_inputs
from sparsify.parts.patterns import parse_pattern
from sparsify.parts.patterns.fan_in import FanIn
from sparsify.parts.topology import update

WEIGHT = [[6.0, 5.0, 4.0, 0.0, 0.0], [3.0, 3.5, 0.0, 2.0, 0.0], [0.0, 0.0, 1.5, 1.4, 1.3], [0.3, 0.2, 0.1, 0.0, 0.0]]
GRADIENT = [[0.0, 0.0, 0.0, 9.0, 1.0], [0.0, 0.0, 0.0, 0.0, 8.0], [7.0, 2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 6.0, 5.0]]
SHARED = [[1, 1, 1, 1, 0], [1, 1, 0, 1, 1], [1, 0, 1, 1, 1], [0, 0, 0, 0, 0]]


def exchanged(weight, gradient, mask, fraction=0.25, ablate=0.3):
    mask = torch.tensor(mask).bool()
    return exchange_inputs(mask, torch.tensor(weight), torch.tensor(gradient), fraction, ablate=ablate).int().tolist()


def test_each_output_selects_its_own_inputs():
    pattern = parse_pattern("fan-in")
    mask = pattern.select(torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 5.0]]), 4)
    assert mask.int().tolist() == [[0, 1, 1], [1, 0, 1]] and str(pattern) == "fan-in"
    assert pattern.holds(mask) and pattern.holds(torch.tensor([[True, True], [False, False]]))
    assert not pattern.holds(torch.tensor([[True, True], [True, False]]))
    with pytest.raises(ValueError, match="budget 3 must be a multiple of 2"):
        pattern.select(torch.ones(2, 3), 3)
    with pytest.raises(PatternError, match="fan-in needs outputs and inputs"):
        pattern.check((4,), "w")


def test_an_output_nothing_speaks_for_gives_its_inputs_to_the_others():
    # 3 of 12 go: the last row's. Of the highest three gradients, 9, 8 and 7, none is there, so it has no salient input, the others four.
    # Twelve shared among three are four each: every row keeps its three and grows its largest gradient.
    mask = [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert exchanged(WEIGHT, GRADIENT, mask) == SHARED
    # Without ablation it grows its own largest gradients, and the last of its three at the lowest of the equal ones.
    alone = exchanged(WEIGHT, GRADIENT, mask, ablate=None)
    assert alone == [*mask[:3], [1, 0, 0, 1, 1]]


def test_an_ablated_output_comes_back_when_its_gradients_are_large():
    # The three grown at 0 go. Of the gradients, 60, 55 and 50 are salient: two of them in the last row, and 1 = int(0.3 * 4) is enough.
    # Twelve among four are three each.
    loud = [[0.0, 0.0, 0.0, 55.0, 0.0], [0.0] * 5, [0.0] * 5, [0.0, 0.0, 0.0, 50.0, 60.0]]
    weight = [[*row] for row in WEIGHT]
    weight[3] = [0.0] * 5
    expected = [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [0, 0, 1, 1, 1], [1, 0, 0, 1, 1]]
    assert exchanged(weight, loud, SHARED) == expected


def test_no_more_outputs_are_ablated_than_leave_a_whole_fan_in():
    # Eight positions of four rows; the last row would go, but eight do not split among three.
    weight = [[4.0, 3.0, 0.0], [0.0, 2.5, 2.0], [1.5, 0.0, 1.0], [0.2, 0.1, 0.0]]
    gradient = [[0.0, 0.0, 5.0], [4.0, 0.0, 0.0], [0.0] * 3, [0.0, 0.0, 1.0]]
    mask = [[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert [sum(row) for row in exchanged(weight, gradient, mask)] == [2, 2, 2, 2]
    # Of three inputs no row can have four, so two rows never suffice: the layer is not emptied further than that.
    assert [sum(row) for row in exchanged(weight, gradient, mask, ablate=100.0)] == [2, 2, 2, 2]


def oracle(mask, weight, gradient, fraction, ablate):
    """Sorted lists of (row, column)."""
    rows, columns = len(mask), len(mask[0])
    places = [(r, c) for r in range(rows) for c in range(columns)]
    active = [p for p in places if mask[p[0]][p[1]]]
    dropped = int(fraction * len(active))
    kept = sorted(active, key=lambda p: (-weight[p[0]][p[1]], p))[: len(active) - dropped]
    loud = sorted(places, key=lambda p: (-gradient[p[0]][p[1]], p))[:dropped]
    salient = [len({p for p in [*kept, *loud] if p[0] == r}) for r in range(rows)]
    staying = list(range(rows))
    if ablate is not None:
        present = len(active) // sum(any(row) for row in mask)
        number = max(1, sum(s >= max(1, int(ablate * present)) for s in salient))
        while len(active) % number or len(active) // number > columns:
            number += 1
        staying = sorted(range(rows), key=lambda r: (-salient[r], r))[:number]
    fan_in, found = len(active) // len(staying), set()
    for r in staying:
        own = [p for p in kept if p[0] == r][:fan_in]  # by weight already
        rest = sorted((p for p in places if p[0] == r and p not in own), key=lambda p: (-gradient[r][p[1]], p))
        found |= {*own, *rest[: fan_in - len(own)]}
    return [[int((r, c) in found) for c in range(columns)] for r in range(rows)]


@pytest.mark.parametrize("ablate", [None, 0.0, 0.3, 0.95, 3.0])
@pytest.mark.parametrize("seed", range(12))
def test_rounds_against_an_oracle(seed, ablate):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows, columns = rng.choice([6, 8, 12]), rng.choice([5, 9])
    mask = parse_pattern("fan-in").select(torch.rand(rows, columns, generator=generator), rows * rng.choice([1, 2, 3]))
    count = int(mask.sum())
    for _ in range(6):
        scale = torch.rand(rows, 1, generator=generator) ** 3  # rows that weigh little
        weight = torch.rand(rows, columns, generator=generator) * scale * mask
        gradient, fraction = torch.rand(rows, columns, generator=generator) * scale.flip(0), rng.uniform(0, 0.6)
        found = exchange_inputs(mask, weight, gradient, fraction, ablate=ablate)
        assert found.int().tolist() == oracle(mask.tolist(), weight.tolist(), gradient.tolist(), fraction, ablate)
        assert int(found.sum()) == count and FanIn().holds(found)
        mask = found


@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 3, 3)])
def test_the_usual_rounds_exchange_within_an_output(shape, regrow):
    torch.manual_seed(0)
    pattern = FanIn()
    mask = pattern.select(torch.rand(shape), 2 * shape[0])
    for _ in range(5):
        mask = update(mask, torch.rand(shape), torch.rand(shape), 0.4, pattern=pattern, regrow_dropped=regrow)
        assert mask.flatten(1).sum(dim=1).tolist() == [2] * shape[0]
