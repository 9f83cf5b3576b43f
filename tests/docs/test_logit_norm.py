"""The example of a wrapper with a loss of its own."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import RecipeError, TrainingError

logit_norm = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "logit_norm.py"))["logit_norm"]


def rigl():
    return sp.methods.build("rigl", {"density": 0.1, "update_every": 3})


def test_the_loss_by_hand():
    # Lengths 5 and 2; divided by tau = 0.5 times them the logits are 1.2 and 1.6, and 0 and 2.
    logits, labels = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([0, 1])
    objective = logit_norm(rigl(), tau=0.5).objective(10)
    expected = (math.log(1 + math.exp(0.4)) + math.log(1 + math.exp(-2.0))) / 2
    assert expected == pytest.approx(0.519972, abs=1e-6)
    assert objective.loss(logits, labels, objective.init()).item() == pytest.approx(expected, abs=1e-6)
    assert objective.loss(100 * logits, labels, objective.init()).item() == pytest.approx(expected, abs=1e-6)


def test_the_wrapped_method_trains_with_exact_density():
    torch.manual_seed(0)
    x, y = torch.randn(32, 20), torch.randint(0, 4, (32,))
    program = sp.trace(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)), (x,)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.02, momentum=0.9)
    trainer = sp.attach(logit_norm(rigl(), tau=0.5), program, optimizer, total_steps=40)
    losses = []
    for _ in range(40):
        loss = trainer.loss(program(x), y)
        loss.backward()
        trainer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        assert (program.costs().active, program.costs().maskable) == (72, 720)
    # Steps 3, 6, ..., 27: RigL stops at three quarters of the run.
    assert trainer.counts["rounds"] == 9
    assert losses[-1] < 0.8 * losses[0]


def test_a_loop_with_another_loss_is_refused():
    x, y = torch.randn(8, 20), torch.randint(0, 4, (8,))
    program = sp.trace(nn.Linear(20, 4), (x,)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    trainer = sp.attach(logit_norm(rigl()), program, optimizer, total_steps=10)
    nn.functional.cross_entropy(program(x), y).backward()
    with pytest.raises(TrainingError, match="loss"):
        trainer.step()


def test_names_and_refusals():
    assert logit_norm(rigl()).name == "logit-norm(rigl)"
    for tau in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(RecipeError, match="tau"):
            logit_norm(rigl(), tau=tau)
    with pytest.raises(RecipeError, match="loss of its own"):
        logit_norm(logit_norm(rigl()))
