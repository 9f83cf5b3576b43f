"""Weights of classes around methods: the loss, and what is refused."""

from __future__ import annotations

import pytest
import torch

import sparsify as sp
from sparsify.errors import RecipeError
from sparsify.parts.balancing import class_weighted
from tests.methods.test_base_objectives import STEPS, X, Y, attached, run


def test_weights_reach_the_loss():
    method = sp.methods.build("class-weighted(rigl)", {"density": 0.1, "class-weighted": {"weights": [1.0, 2.0, 0.0]}})
    logits, labels = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), Y[:8] % 3
    assert method.objective is not None
    assert torch.equal(method.objective(9).loss(logits, labels, {}), class_weighted(logits, labels, (1.0, 2.0, 0.0)))
    assert method.name == "class-weighted(rigl)" and method.tasks == ("classification",)


@pytest.mark.parametrize("weights", [[-1.0, 2.0], [float("nan")], [1e7]])
def test_weights_out_of_range(weights):
    with pytest.raises(RecipeError, match=r"^weights should be between"):
        sp.methods.class_weighted(sp.methods.dense(), weights=weights)


def test_no_weight_at_all():
    with pytest.raises(RecipeError, match="at least one weight should be above 0"):
        sp.methods.class_weighted(sp.methods.dense(), weights=[0.0, 0.0])
    with pytest.raises(RecipeError, match="has a loss of its own already"):
        sp.methods.class_weighted(sp.methods.class_weighted(sp.methods.dense(), weights=[1.0]), weights=[1.0])


def test_without_weights_each_class_weighs_the_same():
    program, optimizer, trainer = attached("class-weighted(set)")
    run(program, optimizer, trainer, 4)
    counts = torch.bincount(Y[:64])
    assert trainer.readings() == {"imbalance": pytest.approx(float(counts.max() / counts.min()))}


def test_equal_weights_train_as_the_base_does():
    one, optimizer, trainer = attached("class-weighted(set)", {"class-weighted": {"weights": [2.0] * 10}})
    run(one, optimizer, trainer, STEPS)
    two, optimizer, trainer = attached("set")
    run(two, optimizer, trainer, STEPS)
    assert all(torch.allclose(value, two.state_dict()[key], atol=1e-5) for key, value in one.state_dict().items())


def test_a_heavy_class_moves_the_gradient_that_growth_ranks_by():
    """With all weight on one class, only its samples have a gradient."""
    program, _, trainer = attached("class-weighted(rigl)", {"class-weighted": {"weights": [1.0] + [0.0] * 9}})
    trainer.loss(program(X[:32]), Y[:32]).backward()
    heavy = [p.grad.clone() for p in program.parameters() if p.grad is not None]
    assert any(grad.any() for grad in heavy)
    other, _, trainer = attached("class-weighted(rigl)", {"class-weighted": {"weights": [1.0] + [0.0] * 9}})
    labels = torch.where(Y[:32] == 0, 0, 5)
    trainer.loss(other(X[:32]), labels).backward()
    assert all(torch.equal(grad, p.grad) for grad, p in zip(heavy, other.parameters(), strict=False))
