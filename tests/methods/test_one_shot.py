"""One-shot pruning: one round, at its step."""

from __future__ import annotations

from sparsify.methods import one_shot
from sparsify.parts.topology import Prune


def test_one_round_at_the_final_density():
    for prune_at, step in ((0.5, 50), (7, 7), (1.0, 100)):
        method = one_shot(density=0.2, prune_at=prune_at)
        assert method.initial == "dense"
        assert method.topology is not None
        prune = method.topology(100)
        assert isinstance(prune, Prune)
        assert [s for s in range(1, 101) if prune.when(s)] == [step]
        assert prune.density(step) == 0.2
