"""A deployed program has one phase, is run in eval mode, and cannot be trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import TraceError, TrainingError
from sparsify.ir import Stage
from sparsify.methods import static_random

X = torch.linspace(-1.0, 1.0, 12).reshape(3, 4)


class TwoHeads(nn.Module):
    """Only training adds the scores of another head."""

    def __init__(self):
        super().__init__()
        self.norm, self.head, self.other = nn.BatchNorm1d(4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(x)
        return self.head(x) + self.other(x) if self.training else self.head(x)


def deployed():
    program = sp.trace(TwoHeads(), (X,))
    return program, sp.Pipeline.parse("deploy")(program)


def test_only_the_eval_phase_and_its_state_are_left():
    program, after = deployed()
    assert after.stage is Stage.DEPLOYED and not after.training
    assert list(after.phases) == list(after.out_specs) == list(after.ranges) == ["eval"]
    gone = {name for name, _ in program.named_parameters()} - {name for name, _ in after.named_parameters()}
    assert gone == {"other.weight", "other.bias"}
    assert "norm.num_batches_tracked" not in dict(after.named_buffers())
    assert torch.equal(after(X), program.eval()(X))
    assert after.costs().macs_dense == 4 * 2 and [site.name for site in after.maskable()] == ["head.weight"]


def test_random_masks_and_hooks_go_with_the_train_phase():
    program = sp.trace(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)), (X,))
    program = sp.Pipeline.parse("insert-random-masks | record-randomness")(program)
    after = sp.Pipeline.parse("deploy")(program)
    assert not after.hooks() and list(dict(after.named_buffers())) == [] and after.random_mask_sites() == ()


def test_it_is_not_trained():
    _, after = deployed()
    with pytest.raises(TrainingError, match="is deployed: train the program that the pass deploy was given"):
        after.train()
    with pytest.raises(TraceError, match="which is deployed, has the phases eval, found 'train'"):
        after.run_phase("train", X)
    with pytest.raises(TrainingError, match="is deployed: its training is over"):
        optimizer = torch.optim.SGD(after.parameters(), lr=0.1)
        sp.attach(static_random(density=0.5), after, optimizer, total_steps=10)
    assert not after.training


def test_copies_files_and_modules_are_deployed_too(tmp_path):
    _, after = deployed()
    after.save(tmp_path / "a.sparsify")
    loaded = sp.Program.load(tmp_path / "a.sparsify")
    for other in (after.clone(), loaded, after.module()):
        assert torch.equal(other(X), after(X)) and not other.training
    assert loaded.text() == after.text() and "\n  train:" not in after.text()
