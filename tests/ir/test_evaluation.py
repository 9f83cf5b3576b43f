"""The eval phase over samples: batches by name, and outputs of unlike lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import sparsify as sp
from sparsify.ir.evaluation import outputs_of, outputs_over
from sparsify.parts.samples import Batch, TensorSamples


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, image, age):
        return self.fc(image) + age


X, AGE = torch.arange(21.0).view(7, 3), torch.arange(7.0)[:, None]


def test_inputs_by_name_by_position_and_alone():
    program = sp.trace(Two().eval(), {"image": X, "age": AGE}).eval()
    wanted = program(X, AGE)
    samples = TensorSamples({"age": AGE, "image": X}, torch.zeros(7).long())
    assert torch.allclose(outputs_over(program, samples, batch_size=3)["logits"], wanted)
    assert torch.allclose(outputs_of(program, (X, AGE))["logits"], wanted)
    single = sp.trace(nn.Linear(3, 2), X).eval()
    assert torch.equal(outputs_of(single, X)["logits"], single(X))


class Ragged:
    """Sequences 1 to 5 long, each batch padded to its longest."""

    targets = torch.zeros(5, 5).long()

    def __len__(self):
        return 5

    def batch(self, rows, *, seed=0):
        del seed
        length = int(rows.max()) + 1
        kept = torch.arange(length)[None] <= rows[:, None]
        return Batch((kept * (rows[:, None] + 1.0))[..., None], self.targets[rows])

    def fingerprint(self):
        return "ragged"


class Cumulative(nn.Linear):
    """A stand-in for a program whose sequences may have any length."""

    def outputs(self, x):
        return {"logits": self(x), "step": 3}


def test_shorter_batches_are_filled_up_with_zeros():
    model: Any = Cumulative(1, 2, bias=False)
    found = outputs_over(model, Ragged(), batch_size=2)
    rows = torch.arange(5)
    inputs = ((rows[None] <= rows[:, None]) * (rows[:, None] + 1.0))[..., None]
    assert found["logits"].shape == (5, 5, 2) and found["step"] == 3
    torch.testing.assert_close(found["logits"], model(inputs))
