"""GMP's rounds and densities by hand."""

from __future__ import annotations

import pytest

from sparsify.methods import gmp
from sparsify.parts.topology import Prune


def topology(total=1000, **options) -> Prune:
    made = gmp(density=0.1, **options)
    assert made.topology is not None
    found = made.topology(total)
    assert isinstance(found, Prune)
    return found


def test_rounds_from_start_to_stop_and_the_last_at_stop():
    prune = topology(start_at=0.05, stop_at=0.75, update_every=200)
    assert [step for step in range(1, 1001) if prune.when(step)] == [200, 400, 600, 750]
    assert [step for step in range(1, 1001) if topology(start_at=100, stop_at=300).when(step)] == [100, 200, 300]


def test_densities_are_the_cubic_of_the_paper():
    prune = topology(start_at=100, stop_at=500)
    assert prune.density(100) == 1.0
    assert prune.density(300) == pytest.approx(1 - 0.9 * 7 / 8)  # sparsity s_f (1 - (1 - t)^3)
    assert prune.density(400) == pytest.approx(1 - 0.9 * 63 / 64)
    assert prune.density(500) == prune.density(1000) == 0.1


def test_a_run_shorter_than_the_interval_still_reaches_its_density():
    prune = topology(total=10, update_every=100)
    fired = [step for step in range(1, 11) if prune.when(step)]
    assert fired == [8]
    assert prune.density(8) == 0.1
