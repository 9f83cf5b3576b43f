"""The example of a graph, on a stochastic block model with a rare block: by hand, and from the command to the file."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import sparsify as sp
from sparsify.errors import LoadError
from sparsify.loading import load_data
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run

FILE = Path(__file__).parents[2] / "examples" / "cora.py"
CORA = runpy.run_path(str(FILE))


def block_model(sizes=(30, 150, 120), within=0.08, between=0.01, words=60):
    """The arrays of a graph whose nodes cite their own block more, and use other words; block 0 is rare."""
    draw = np.random.default_rng(0)
    y = np.repeat(np.arange(len(sizes)), sizes)
    chance = np.where(y[:, None] == y[None, :], within, between)
    upper = np.triu(draw.random(chance.shape) < chance, 1)
    frequent = draw.random((len(sizes), words)) < 0.2
    used = draw.random((len(y), words)) < np.where(frequent[y], 0.3, 0.05)
    parts = np.split(draw.permutation(len(y)), (120, 200))
    return {
        "x_indptr": np.concatenate([[0], used.sum(1).cumsum()]).astype(np.int32),
        "x_indices": np.nonzero(used)[1].astype(np.int16),
        "x_shape": np.array(used.shape, np.int32),
        "edge_index": np.stack(np.nonzero(upper | upper.T)).astype(np.int32),
        "y": y.astype(np.int8),
        **dict(zip(("train_idx", "val_idx", "test_idx"), (part.astype(np.int32) for part in parts), strict=True)),
    }


@pytest.fixture
def graph(tmp_path, monkeypatch):
    np.savez(tmp_path / "graph.npz", **block_model())
    monkeypatch.setenv("CORA", str(tmp_path / "graph.npz"))
    return block_model()


def test_the_normalised_adjacency_of_a_path_of_three_nodes():
    found = CORA["normalised"](np.array([[0, 1, 1, 2], [1, 0, 2, 1]]), 3)
    half, side = 0.5, 6**-0.5  # degrees with the node itself are 2, 3 and 2
    wanted = torch.tensor([[half, side, 0.0], [side, 1 / 3, side], [0.0, side, half]])
    torch.testing.assert_close(found, wanted)


def test_features_have_length_one():
    found = CORA["features"](
        {"x_indptr": np.array([0, 2, 2, 3]), "x_indices": np.array([0, 2, 1]), "x_shape": np.array([3, 3])}
    )
    assert found.tolist() == [[pytest.approx(0.5**0.5), 0.0, pytest.approx(0.5**0.5)], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def test_logits_are_those_of_two_graph_convolutions(graph):
    del graph
    found, model = CORA["arrays"](), CORA["gcn"]().eval()
    x, adjacency = CORA["features"](found), CORA["normalised"](found["edge_index"], 300)
    hidden = torch.relu(adjacency @ (x @ model.first.weight.T) + model.first.bias)
    wanted = adjacency @ (hidden @ model.last.weight.T) + model.last.bias
    nodes = torch.tensor([7, 0, 299])
    torch.testing.assert_close(model(nodes), wanted[nodes])


def test_weights_get_masks_and_words_and_citations_none(graph):
    program = sp.trace(CORA["rare_gcn"](), (torch.arange(4),))
    assert [site.name for site in program.maskable() if site.skip is None] == ["first.weight", "last.weight"]
    assert {name for name, _ in program.named_buffers()} == {"near", "adjacency"}
    assert graph["x_shape"].tolist() == [300, 60]


def test_the_rare_class_against_the_rest(graph):
    data = load_data(f"{FILE}:rare", seed=0)
    assert data.classes == 2 and len(data.train) == 120 and len(data.test) == 100
    assert int(data.train.targets.sum()) == int((graph["y"][graph["train_idx"]] == 0).sum())


def test_a_run_is_calibrated_exported_and_verified(graph, tmp_path):
    keys = {
        "model": f"{FILE}:rare_gcn", "data": f"{FILE}:rare", "method": "calirare(gmp)", "sparsity": 0.8, "epochs": 25, "batch_size": 30,
        "optimizer": "adamw", "lr": 0.02,
    }  # fmt: skip
    report = run(parse_recipe(None, keys), tmp_path / "run", timed=False)
    model = report["model"]
    assert model["accuracy"] > 0.9 and model["parity"]["ok"] and model["counts"]["steps"] == 25 * (90 // 30)
    row = model["individual"]
    assert row["samples"] == 100 and row["influences"] == 80 and 0 < row["eice"] < 0.5
    session = onnxruntime.InferenceSession(str(tmp_path / "run" / "model.onnx"))
    nodes = graph["test_idx"][:8].astype(np.int64)
    (name,) = (value.name for value in session.get_inputs())
    logits = session.run(["logits"], {name: nodes})[0]
    program = sp.Program.load(tmp_path / "run" / "program.sparsify").eval()
    np.testing.assert_allclose(logits, program(torch.from_numpy(nodes)).detach(), atol=1e-5)


def test_a_missing_file_is_named(monkeypatch):
    monkeypatch.setenv("CORA", "nowhere.npz")
    with pytest.raises(LoadError, match=r"no file 'nowhere.npz'; set the environment variable CORA"):
        load_data(f"{FILE}:papers", seed=0)
