"""Inputs without a batch dimension: every input is sliced by its role, when ranges are observed and when a file is judged."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import ExportError
from sparsify.exporters import int8_forms
from sparsify.exporters.int8_samples import samples_of


class Context(nn.Module):
    """Layers for the samples, and something else that every sample shares."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def body(self, x):
        return self.second(self.first(x).relu()).relu()


class Scaled(Context):
    def forward(self, x, scale):
        return self.last(self.body(x * scale))


class Edges(Context):
    def forward(self, x, edges):
        h = self.body(x)
        return self.last(h.index_add(0, edges[1], h[edges[0]]))


class Table(Context):
    def forward(self, x, table):
        return self.last(self.body(x)) @ self.last(self.body(table)).T


class Masked(Context):
    """[N, T, 8] tokens and a mask [T, T]."""

    def forward(self, x, mask):
        h = self.body(x)
        return self.last(torch.softmax(h @ h.transpose(1, 2) / 6 + mask, -1) @ h).mean(1)


class Six(Table):
    """Takes six samples, no more and no fewer."""

    def forward(self, x, table):
        return super().forward(x.view(6, 8), table)


def case(name):
    """Network, inputs to trace with, to calibrate on, to compare on, and to run afterwards."""
    draw = lambda n, *shape: torch.randn(n, *(shape or (8,)))  # ruff: ignore[lambda-assignment]
    both = {
        "scalar": (Scaled, torch.tensor(0.5)), "table": (Table, draw(11)),
        "mask": (Masked, torch.full((5, 5), -30.0).triu(1)),
    }  # fmt: skip
    if name == "edges":
        return Edges, *([draw(n), torch.randint(0, n, (2, 40))] for n in (50, 100, 90, 70))
    build, other = both[name]
    return build, *([draw(n, *((5, 8) if name == "mask" else ())), other] for n in (3, 100, 90, 7))


@pytest.fixture
def integers_first(monkeypatch):
    count = lambda model: sum(node.op_type == "DequantizeLinear" for node in model.graph)  # ruff: ignore[lambda-assignment]
    monkeypatch.setattr(int8_forms, "times", lambda models, **_: {k: -count(m) for k, (m, _) in models.items()})


@pytest.mark.filterwarnings("ignore:'edges' holds for batches of 2 <= N")
@pytest.mark.parametrize("name", ["scalar", "table", "mask", "edges"])
def test_a_model_with_another_input_is_written_in_int8(name, tmp_path, integers_first):
    build, example, calibration, held_out, later = case(name)
    program = sp.trace(build(), tuple(example)).eval()
    result = sp.export(
        program, tmp_path / "m.onnx", inputs=held_out, precision="int8", calibration=calibration, held_out=held_out
    )
    assert result.int8 is not None and result.int8.chosen.integers >= 2 and not result.int8.refused
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    feeds = {value.name: x.numpy() for value, x in zip(session.get_inputs(), later, strict=True)}
    with torch.no_grad():
        want, have = program(*later).numpy(), session.run(["logits"], feeds)[0]
    assert want.shape == have.shape and 0 < np.abs(want - have).max() < 0.1 * np.abs(want).max()


def test_only_the_samples_are_sliced():
    program = sp.trace(Masked(), (torch.randn(3, 5, 8), torch.zeros(5, 5))).eval()
    x, mask, y = torch.randn(70, 5, 8), torch.randn(5, 5), torch.arange(70)
    samples = samples_of(program, [x, mask], [x[:40], mask], y[:40], batch=4)
    assert [feeds["x"].shape[0] for feeds in samples.calibration] == [32, 32, 6]
    assert all(np.array_equal(feeds["mask"], mask) for feeds in (*samples.calibration, samples.timed, *samples.tried))
    assert samples.timed["x"].shape == (4, 5, 8) and [feeds["x"].shape[0] for feeds in samples.tried] == [1, 32]
    assert np.array_equal(np.concatenate([feeds["x"] for feeds in samples.held_out]), x[:40])


@pytest.mark.filterwarnings("ignore:Six fixes its batch size")
def test_a_fixed_batch_is_that_of_the_inputs_that_hold_more_samples():
    program = sp.trace(Six(), (torch.randn(6, 8), torch.randn(11, 8))).eval()
    x, table = torch.randn(20, 8), torch.randn(11, 8)
    samples = samples_of(program, [x, table], [x, table], torch.arange(20), batch=1)
    assert [feeds["x"].shape[0] for feeds in samples.calibration] == [6, 6, 6] and samples.timed["x"].shape == (6, 8)
    assert all(feeds["table"].shape == (11, 8) for feeds in (*samples.calibration, *samples.held_out))
    assert samples.wanted["logits"].table(samples.wanted["logits"].values).shape == (18, 11)
    with pytest.raises(ExportError, match=r"same number of samples each, found x \[20, 8\], table \[22, 8\]"):
        samples_of(program, [x, torch.randn(22, 8)], [x, table], None, batch=1)


def test_a_program_without_logits_is_judged_by_its_prediction(tmp_path, integers_first):
    x = torch.randn(100, 8)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    program = sp.trace(net, (x[:2],), task="regression").eval()
    result = sp.export(program, tmp_path / "m.onnx", inputs=[x], precision="int8", calibration=[x])
    assert result.int8 is not None and result.int8.chosen.integers >= 2 and set(result.int8.errors) == {"prediction"}
    assert 0 < result.int8.errors["prediction"] < 0.1 and 0 < result.int8.largest_error < 0.1


@pytest.mark.filterwarnings("ignore:Six fixes its batch size")
def test_a_fixed_batch_in_int8(tmp_path, integers_first):
    x, table = torch.randn(40, 8), torch.randn(11, 8)
    program = sp.trace(Six(), (x[:6], table)).eval()
    result = sp.export(
        program,
        tmp_path / "m.onnx",
        inputs=[x[:6], table],
        precision="int8",
        calibration=[x, table],
        held_out=[x, table],
    )
    assert result.int8 is not None and result.int8.chosen.integers >= 2


def test_samples_of_another_shape_are_refused_by_name():
    program = sp.trace(Table(), (torch.randn(6, 8), torch.randn(11, 8))).eval()
    good, table = torch.randn(20, 8), torch.randn(11, 8)
    for given, message in (
        (
            ([good, table], [torch.randn(20, 9), table]),
            r"held_out for input 'x' should have shape \['N', 8\], found \[20, 9\]",
        ),
        (
            ([good, table[:5]], [good, table]),
            r"calibration for input 'table' should have shape \[11, 8\], found \[5, 8\]",
        ),
        (([good, table], [good[:1].expand(9, 8), table]), "9 times the same sample"),
    ):
        with pytest.raises(ExportError, match=message):
            samples_of(program, *given, None, batch=1)


def test_the_file_that_is_written_takes_bytes_and_is_compared_with_them(tmp_path, integers_first, monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    x = torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8)
    prepare = sp.Preprocessing(mean=(0.5,), std=(0.25,))
    program = sp.trace(model, (prepare.inputs(x[:2]),)).eval()
    options = {
        "inputs": [prepare.inputs(x[:64])], "precision": "int8", "calibration": [prepare.inputs(x[64:])],
        "preprocessing": prepare, "input_type": "uint8", "held_out": [prepare.inputs(x[:64])],
    }  # fmt: skip
    result = sp.export(program, tmp_path / "m.onnx", **options)
    assert result.int8 is not None and result.int8.chosen.integers == 1
    bake = sp.Preprocessing.bake

    def wrong(self, graph):
        integers = any(node.op_type == "DequantizeLinear" for node in graph)
        bake(sp.Preprocessing(mean=(0.1,), std=(0.9,)) if integers else self, graph)

    monkeypatch.setattr(sp.Preprocessing, "bake", wrong)
    with pytest.raises(
        ExportError, match=r"returns other outputs for bytes than for the same inputs as floats .*output 'logits'"
    ):
        sp.export(program, tmp_path / "n.onnx", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert onnx.load(tmp_path / "m.onnx").graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
