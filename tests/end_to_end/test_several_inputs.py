"""Models of several inputs through the command's loop, export, proof and report; batches from rows that a collate function pads."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from sparsify.errors import DataError
from sparsify.exporters import int8_forms
from sparsify.loading import load_data
from sparsify.runs.artefacts import run_file
from sparsify.runs.exporting import export_saved
from sparsify.runs.recipe import Recipe
from sparsify.runs.workflow import run
from tests.loading.test_data import IMAGES, LABELS
from tests.reports.test_usage import decisions, lines_of

MODEL = """
import torch
from torch import nn
class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.ink, self.out = nn.Linear(64, 32), nn.Linear(2, 8), nn.Linear(40, 10)
    def forward(self, ink, image):
        seen = torch.cat([self.image(image.flatten(1)), self.ink(ink)], 1)
        return self.out(torch.relu(seen))
"""
INK = np.stack([IMAGES.mean((1, 2)), IMAGES.std((1, 2))], 1).astype(np.float32) / 100


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "m.py").write_text(MODEL)
    arrays: dict[str, Any] = {}
    for part, rows in (("train", slice(0, 600)), ("test", slice(600, 800))):
        arrays |= {f"x_{part}.image": IMAGES[rows], f"x_{part}.ink": INK[rows], f"y_{part}": LABELS[rows]}
    np.savez(tmp_path / "d.npz", **arrays)
    return tmp_path


def recipe(folder, **changes) -> Recipe:
    common = {
        "model": f"{folder / 'm.py'}:Both", "data": str(folder / "d.npz"), "epochs": 6, "batch_size": 32, "warmup": 0, "lr": 0.1,
        "threads": 1, "sparsity": 0.5, "method_options": {"update_every": 5}, "baseline": True, "checkpoint_every": 7,
    }  # fmt: skip
    return Recipe(**{**common, **changes})


def test_two_inputs_are_trained_on_resumed_exported_and_told_of(mine, monkeypatch):
    report = run(recipe(mine), mine / "a")
    assert report["model"]["accuracy"] > 0.7 and report["model"]["parity"]["ok"]
    held = json.loads((mine / "a" / "metrics.json").read_text())
    assert held["inputs"] == [
        {"name": "ink", "dtype": "float32", "shape": [2], "array": "x_test.ink"},
        {"name": "image", "dtype": "float32", "shape": [1, 8, 8], "array": "x_test.image"},
    ]  # fmt: skip
    assert held["data"]["preparation"]["inputs"]["image"]["scale"] == 255 and "latency" in report
    file = onnx.load(mine / "a" / "model.onnx")
    assert {value.name for value in file.graph.input} == {"ink", "image"}
    assert "preparation" in {entry.key for entry in file.metadata_props}
    [code] = lines_of(mine / "a")
    assert float((decisions(mine / "a", code) == LABELS[600:800]).mean()) == report["model"]["accuracy"]
    data = load_data(str(mine / "d.npz"), seed=0)
    logits = run_file(mine / "a" / "model.onnx", data.test)["logits"]
    assert float((logits.argmax(1) == data.test.targets).double().mean()) == report["model"]["accuracy"]

    def cut(part, row):
        if part == "model" and row["step"] == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe(mine), mine / "b", on_step=cut)
    run(recipe(mine, workers=1), mine / "b", resume=True)
    assert torch.equal(run_file(mine / "b" / "model.onnx", data.test)["logits"], logits), "whoever fetches the batches"
    result, _ = export_saved(mine / "a" / "program.sparsify", mine / "again.onnx", data=str(mine / "d.npz"))
    assert result.parity.share <= 1 and result.parity.decisions > 0
    count = lambda model: sum(node.op_type == "DequantizeLinear" for node in model.graph)  # ruff: ignore[lambda-assignment]
    monkeypatch.setattr(int8_forms, "times", lambda models, **_: {k: -count(m) for k, (m, _) in models.items()})
    saved, given = mine / "a" / "program.sparsify", {"data": str(mine / "d.npz"), "precision": "int8"}
    result, row = export_saved(saved, mine / "int8.onnx", **given)
    assert {**row["layers"]} == {"image.weight": "int8 dense", "ink.weight": "int8 dense", "out.weight": "fp32 dense"}
    assert row["accuracy"] == pytest.approx(report["model"]["accuracy"], abs=0.02)
    assert (
        float((run_file(mine / "int8.onnx", data.test)["logits"].argmax(1) == data.test.targets).double().mean())
        == row["accuracy"]
    )


def test_what_needs_images_is_refused_before_anything_is_written(mine):
    with pytest.raises(DataError, match=r"shifts and flips images.*several \(image \[2, 1, 8, 8\], ink \[2, 2\]\)"):
        run(recipe(mine, augment="crop-flip"), mine / "a")
    with pytest.raises(DataError, match="must come from a factory that prepares them in the same way"):
        run(recipe(mine, ood=("photos",)), mine / "a")
    assert not (mine / "a").exists() or not list((mine / "a").iterdir())


OOD = """
from tests.end_to_end.test_several_inputs import IMAGES, INK, LABELS
def mixed(): return {"image": IMAGES[900:950, None].astype("float32") / 255, "ink": INK[:50], "label": LABELS[:50]}
def lacks(): return {"image": IMAGES[900:950], "label": LABELS[:50]}
"""


def test_inputs_of_no_class_have_the_names_of_the_others(mine):
    (mine / "o.py").write_text(OOD)
    report = run(recipe(mine, baseline=False, epochs=1, ood=(f"{mine / 'o.py'}:mixed",)), mine / "a", timed=False)
    assert list(report["model"]["ood"]) == ["mixed"]
    with pytest.raises(DataError, match=r"those of the training data have image: .*; ink: "):
        run(recipe(mine, ood=(f"{mine / 'o.py'}:lacks",)), mine / "b")


ROWS = """
import torch
from torch import nn
from torch.utils.data import DataLoader
from tests.loading.test_pairs import padded, rows
class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(16, 16), nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))
    def forward(self, input_ids, attention_mask=None):
        seen = self.table(input_ids) * attention_mask[..., None]
        return self.out(seen.sum(1) / attention_mask.sum(1, keepdim=True))
def fixed(items):
    batch = padded(items)
    grow = lambda x: nn.functional.pad(x, (0, 8 - x.shape[1]))
    return {key: value if key == "labels" else grow(value) for key, value in batch.items()}
def data(): return {part: DataLoader(rows() * 3, collate_fn=fixed) for part in ("train", "validation", "test")}
"""


def test_rows_with_keys_are_trained_on_by_name(mine):
    (mine / "r.py").write_text(ROWS)
    options = {
        "model": f"{mine / 'r.py'}:Bag",
        "data": f"{mine / 'r.py'}:data",
        "epochs": 2,
        "baseline": False,
        "batch_size": 8,
    }
    report = run(recipe(mine, **options), mine / "a", timed=False)
    held = json.loads((mine / "a" / "metrics.json").read_text())
    assert [row["name"] for row in held["inputs"]] == ["input_ids", "attention_mask"]
    assert report["model"]["parity"]["ok"] and torch.isfinite(torch.tensor(report["model"]["nll_before"]))
