"""The example that predicts an image from several: its loss by hand, what its file holds, and a run with its own loss."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import sparsify as sp
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run
from sparsify.tasks import Regression

FILE = Path(__file__).parents[2] / "examples" / "inva.py"
INVA = runpy.run_path(str(FILE))
VIEWS = {"edges": torch.randn(8, 3, 4), "small": torch.randn(8, 12)}


def small():
    torch.manual_seed(0)
    return INVA["InVA"](dict.fromkeys(VIEWS, 12), (2, 3), latents=4, hidden=16)


def test_the_four_terms_by_hand():
    mean, log_variance = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    # 1/2 ((1 - 0)^2 + 0) and 1/2 (e^2 - 1 - 2)
    assert INVA["divergence"](mean, log_variance).item() == pytest.approx(0.5 + (7.389056 - 3) / 2)
    assert INVA["divergence"](mean, log_variance * 0, mean).item() == 0
    output = {"prediction": torch.tensor([[1.0, 2.0]])}
    assert INVA["loss"](output, torch.zeros(1, 2)).item() == 2.5
    output |= {"reconstruction": torch.tensor([3.0]), "shallow": torch.tensor([10.0]), "deep": torch.tensor([20.0])}
    assert INVA["loss"](output, torch.zeros(1, 2)).item() == pytest.approx(2.5 + 0.3 + 0.001 + 0.002)


def test_the_order_of_views_does_not_matter(monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    model, turned, target = small().train(), small().train(), torch.zeros(8, 2, 3)
    for part in ("shallow", "rebuild"):
        ours, theirs = getattr(model, part), getattr(turned, part)
        theirs["edges"], theirs["small"] = ours["small"], ours["edges"]
    turned.predict[0].weight.data = model.predict[0].weight.data.roll(8, 1)
    swapped = {"edges": VIEWS["small"], "small": VIEWS["edges"]}
    torch.testing.assert_close(INVA["loss"](model(**VIEWS), target), INVA["loss"](turned(**swapped), target))


def test_a_loop_of_ones_own_trains_with_it():
    model, target = small(), torch.randn(8, 2, 3)
    task = Regression(criterion=INVA["loss"])
    program = sp.trace(model, VIEWS, task=task).train()
    assert program.output_names("train") == ("prediction", "reconstruction", "shallow", "deep")
    assert not torch.equal(program(**VIEWS)["prediction"], program(**VIEWS)["prediction"])
    optimizer = torch.optim.AdamW(program.parameters(), lr=0.01)
    trainer = sp.attach(sp.methods.gmp(density=0.2), program, optimizer, total_steps=20, task=task)
    before = trainer.loss(program(**VIEWS), target).item()
    for _ in range(20):
        loss = trainer.loss(program(**VIEWS), target)
        loss.backward()
        trainer.step()
        optimizer.zero_grad()
    assert loss.item() < before
    assert trainer.density == pytest.approx(0.2, abs=0.01)
    with torch.no_grad():
        torch.testing.assert_close(program.eval()(**VIEWS)["prediction"], model.eval()(**VIEWS)["prediction"])


MINE = """
import runpy
import torch
INVA = runpy.run_path({file!r})
loss, figures = INVA["loss"], INVA["figures"]

def build():
    return INVA["InVA"](dict(edges=12, small=12), (2, 3), latents=16, hidden=32)

def data():
    u = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    views = {{"edges": u.repeat(1, 4).reshape(-1, 3, 4), "small": (u**2).repeat(1, 4)}}
    y = torch.stack([u, u.prod(1, keepdim=True) + u], 1)
    cut = {{"train": slice(0, 240), "test": slice(240, 300)}}
    return {{part: {{**{{k: v[rows] for k, v in views.items()}}, "y": y[rows]}} for part, rows in cut.items()}}
"""


def test_what_a_run_draws_is_not_in_its_file(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(MINE.format(file=str(FILE)))
    keys = {
        "model": f"{mine}:build", "data": f"{mine}:data", "task": "regression", "loss": f"{mine}:loss", "pattern": "grouped:16",
        "sparsity": 0.8, "epochs": 15, "batch_size": 24, "optimizer": "adamw", "lr": 0.005, "warmup": 0, "threads": 1,
    }  # fmt: skip
    report = run(parse_recipe(None, keys), tmp_path / "run", timed=False)
    assert report["model"]["figures"]["r2"] > 0.05 and report["model"]["parity"]["ok"]
    assert 0.8 < report["model"]["interval"]["coverage"] <= 1
    assert "scale" not in report["data"], "a loss of one's own weighs errors in their own units"

    file = onnx.load(tmp_path / "run" / "model.onnx")
    assert not [node for node in file.graph.node if "Random" in node.op_type]
    names = [value.name for value in file.graph.initializer]
    assert len([name for name in names if "deep.body.weight" in name]) == 1, "called for each view, and held once"
    assert not [name for name in names if "rebuild" in name or "log_variance" in name]
    session = onnxruntime.InferenceSession(tmp_path / "run" / "model.onnx")
    shapes = {output.name: output.shape for output in session.get_outputs()}
    assert shapes == {key: ["batch", 2, 3] for key in ("prediction", "lower", "upper")}
    given = {value.name: torch.randn(5, *value.shape[1:]).numpy() for value in session.get_inputs()}
    first, again = (session.run(None, given) for _ in range(2))
    assert all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(first, again, strict=True))
