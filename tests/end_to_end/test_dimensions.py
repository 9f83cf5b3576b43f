"""Files whose inputs vary in more than the batch: proved at several sizes, and run at others in ONNX Runtime."""

from __future__ import annotations

import json
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from sparsify.errors import ExportError
from sparsify.exporters import export
from sparsify.exporters.preprocessing import Preprocessing
from sparsify.ir import Program, TraceWarning, trace
from sparsify.passes import Pipeline
from tests.end_to_end.test_command import sparsify


class Attention(nn.Module):
    """A language model of characters: one causal layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(20, 32), nn.Parameter(torch.randn(1, 32, 32))
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 20)

    def forward(self, ids):
        count, length = ids.shape
        x = self.embedding(ids) + self.positions[:, :length]
        q, k, v = self.qkv(self.norm(x)).view(count, length, 3, 2, 16).permute(2, 0, 3, 1, 4)
        later = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        scores = (q @ k.transpose(-1, -2) / 4).masked_fill(later, float("-inf"))
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(count, length, 32))
        return self.head(x + self.down(torch.relu(self.up(x))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(20, 8), nn.GRU(8, 32, batch_first=True), nn.Linear(32, 16)

    def forward(self, ids):
        return self.head(self.layer(self.embedding(ids))[0])


class Picture(nn.Module):
    """Segments pictures of any even size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.up, self.head = nn.ConvTranspose2d(32, 8, 2, 2), nn.Conv2d(40, 3, 1)

    def forward(self, x):
        y = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(torch.cat([y, self.up(torch.max_pool2d(y, 2))], 1))


class TwoRows(nn.Module):
    """Two inputs with lengths of their own, and a layer of the pooled rows."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(8, 32), nn.Linear(6, 32), nn.Linear(64, 64)

    def forward(self, left, right):
        pooled = [torch.relu(f(x)).mean(1) for f, x in ((self.left, left), (self.right, right))]
        return self.head(torch.cat(pooled, 1))


def ids(count, length):
    return {"ids": torch.randint(20, (count, length))}


CASES = {  # model, inputs of a size, what varies, sizes of the trace, sizes of calls
    "attention": (Attention, ids, {"ids": {1: "T"}}, (7,), [(1,), (13,), (32,)]),
    "recurrent": (Recurrent, ids, {"ids": {1: "T"}}, (7,), [(1,), (13,), (60,)]),
    "picture": (Picture, lambda n, h, w: {"x": torch.rand(n, 1, h, w)}, {"x": {2: "H", 3: "W"}}, (8, 12), [(2, 2), (10, 4), (16, 30)]),
    "two rows": (
        TwoRows,
        lambda n, s, t: {"left": torch.rand(n, s, 8), "right": torch.rand(n, t, 6)},
        {"left": {1: "S"}, "right": {1: "T"}},
        (4, 6),
        [(1, 1), (9, 2), (3, 17)],
    ),
}  # fmt: skip


def traced(name) -> tuple[nn.Module, Program]:
    build, make, dynamic, sizes, _ = CASES[name]
    torch.manual_seed(0)
    model = build().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        return model, trace(model, make(3, *sizes), dynamic=dynamic)


@pytest.mark.parametrize("form", ["auto", "grouped"])
@pytest.mark.parametrize("name", CASES)
def test_a_file_is_right_at_other_sizes(name, form, tmp_path):
    _, make, dynamic, sizes, calls = CASES[name]
    _, program = traced(name)
    pattern = "unstructured" if name == "recurrent" else "grouped:8"
    program = Pipeline.parse(f"insert-masks{{pattern={pattern} density=0.5}}")(program).eval()
    result = export(program, tmp_path / "m.onnx", inputs=make(12, *sizes), form=form)
    names = [dimension for places in dynamic.values() for dimension in places.values()]
    assert {*result.parity.sizes} == {*names}
    assert all(len(result.parity.sizes[dimension]) == 3 for dimension in names)
    assert result.ranges == program.ranges["eval"]
    file = onnx.load(tmp_path / "m.onnx")
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in file.graph.input}
    for spec in program.input_specs:
        assert shapes[spec.name] == ["batch" if size == "N" else size for size in spec.shape]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for count, call in zip((1, 2, 5), calls, strict=True):
        given = make(count, *call)
        got = np.asarray(session.run(None, {key: value.numpy() for key, value in given.items()})[0])
        np.testing.assert_allclose(got, program(**given).detach(), atol=1e-4)


def test_limited_sizes_are_in_the_metadata(tmp_path):
    _, program = traced("attention")
    export(program, tmp_path / "m.onnx", inputs=ids(12, 9))
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(metadata["size_ranges"]) == {"T": {"low": 1, "high": 32, "step": 1, "excluded": []}}


@pytest.mark.parametrize("pattern", ["grouped:8", "grouped:16x4"])
def test_layers_over_a_length_that_varies_are_grouped(pattern, tmp_path):
    _, program = traced("attention")
    program = Pipeline.parse(f"insert-masks{{pattern={pattern} density=0.25}}")(program).eval()
    result = export(program, tmp_path / "m.onnx", inputs=ids(12, 7), form="grouped")
    names = ("qkv", "out", "up", "down")
    assert {name: result.forms[f"{name}.weight"] for name in names} == dict.fromkeys(names, "grouped")
    kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert kinds.count("Conv") == 4 and "Loop" not in kinds
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for count, length in ((1, 1), (1, 2), (4, 1), (3, 32)):
        given = ids(count, length)
        got = np.asarray(session.run(None, {"ids": given["ids"].numpy()})[0])
        np.testing.assert_allclose(got, program(**given).detach(), atol=1e-4)


def test_layers_over_a_length_and_more_stay_dense_and_say_so(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        program = trace(nn.Linear(32, 32).eval(), torch.rand(3, 7, 2, 32), dynamic={"input": {1: "T"}})
    program = Pipeline.parse("insert-masks{pattern=grouped:8 density=0.25}")(program).eval()
    result = export(program, tmp_path / "m.onnx", inputs=torch.rand(12, 7, 2, 32), form="grouped")
    assert result.forms["weight"] == "the size T of its input varies"


def test_a_file_that_is_wrong_at_another_length_is_refused(tmp_path, monkeypatch):
    _, program = traced("recurrent")
    from sparsify.exporters import onnx as exporter

    made = exporter._convert

    def spoilt(*args, **kwargs):
        model = ir.to_proto(made(*args, **kwargs))
        size = onnx.helper.make_node("Shape", ["ids"], ["length_of_ids"], start=1, end=2)
        cast = onnx.helper.make_node("Cast", ["length_of_ids"], ["length_as_float"], to=onnx.TensorProto.FLOAT)
        last = model.graph.output[0].name
        for node in model.graph.node:
            node.output[:] = ["before" if name == last else name for name in node.output]
        seven = onnx.helper.make_tensor("seven", onnx.TensorProto.FLOAT, [1], [7.0])
        model.graph.initializer.append(seven)
        scale = onnx.helper.make_node("Div", ["length_as_float", "seven"], ["scale"])
        model.graph.node.extend([size, cast, scale, onnx.helper.make_node("Mul", ["before", "scale"], [last])])
        return ir.from_proto(model)

    monkeypatch.setattr(exporter, "_convert", spoilt)
    with pytest.raises(ExportError, match=r"differs from the program at batch \d+, T = "):
        export(program, tmp_path / "m.onnx", inputs=ids(12, 7), form="dense")
    assert not (tmp_path / "m.onnx").exists()


def test_inputs_outside_the_range_are_refused(tmp_path):
    _, program = traced("attention")
    with pytest.raises(ExportError, match="the inputs have T = 33, and 'attention' holds for 1 <= T <= 32"):
        export(program, tmp_path / "m.onnx", inputs=ids(4, 33))


def test_bytes_of_pictures_of_any_size(tmp_path):
    _, program = traced("picture")
    prepare = Preprocessing(layout="NHWC")
    export(program, tmp_path / "m.onnx", inputs=torch.rand(6, 1, 8, 12), preprocessing=prepare, input_type="uint8")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    stored = torch.randint(256, (2, 10, 6, 1), dtype=torch.uint8)
    got = np.asarray(session.run(None, {"x": stored.numpy()})[0])
    np.testing.assert_allclose(got, program(prepare.inputs(stored)).detach(), atol=1e-4)


def test_integers(tmp_path):
    _, program = traced("two rows")
    make, sizes = CASES["two rows"][1], CASES["two rows"][3]
    given = [list(make(count, *sizes).values()) for count in (64, 64)]
    result = export(
        program, tmp_path / "m.onnx", inputs=given[0], precision="int8", calibration=given[0], held_out=given[1]
    )
    assert result.int8 is not None
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    other = make(3, 9, 2)
    got = np.asarray(session.run(None, {key: value.numpy() for key, value in other.items()})[0])
    want = program(**other).detach().numpy()
    assert np.abs(got - want).max() <= 0.1 * np.abs(want).max()


def test_a_hugging_face_model_fed_with_dictionaries(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50, num_labels=4,
        max_position_embeddings=24,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForTokenClassification(config).eval()
    model.set_attn_implementation("eager")

    def batch(count, length):
        mask = torch.ones(count, length, dtype=torch.long)
        mask[0, length // 2 + 1 :] = 0
        return {
            "input_ids": torch.randint(50, (count, length)),
            "token_type_ids": torch.randint(2, (count, length)),
            "attention_mask": mask,
        }

    every = {name: {1: "T"} for name in batch(1, 1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = trace(model, batch(3, 10), dynamic=every)
    program.save(tmp_path / "m.sparsify")
    program = Program.load(tmp_path / "m.sparsify")
    result = export(program, tmp_path / "m.onnx", inputs=batch(12, 10), form="dense")
    assert result.parity.sizes == {"T": (1, 10, 24)}
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert {value.name for value in session.get_inputs()} == {*batch(1, 1)}
    for count, length in ((1, 1), (2, 17), (4, 24)):
        given = batch(count, length)
        with torch.no_grad():
            want = model(**given).logits
            torch.testing.assert_close(program(**given).logits, want)
        got = np.asarray(session.run(None, {key: value.numpy() for key, value in given.items()})[0])
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_the_command_declares_what_varies(capsys, tmp_path):
    (tmp_path / "pictures.py").write_text(
        "from torch import nn\n\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))\n"
    )
    code, out, err = sparsify(
        capsys, "trace", tmp_path / "pictures.py:build", "--input", "3x1x8x8", "--dynamic", "input:2=H", "--dynamic", "input:3=W",
        "--out", tmp_path / "p.sparsify",
    )  # fmt: skip
    assert code == 0, err
    assert "f32[N, 1, H, W]" in out
    assert Program.load(tmp_path / "p.sparsify")(torch.rand(2, 1, 5, 30)).shape == (2, 10)
    code, _, err = sparsify(capsys, "trace", "--dynamic", "input=H")
    assert code == 2
    assert "INPUT:PLACE=NAME" in err


@pytest.mark.filterwarnings("ignore")
def test_a_run_exports_pictures_of_any_size(capsys, tmp_path):
    (tmp_path / "pictures.py").write_text(
        "from torch import nn\n\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))\n"
    )
    code, _, err = sparsify(
        capsys, "run", tmp_path / "pictures.py:build", "--data", "digits", "--epochs", "1", "--sparsity", "0.5", "--set", "train.warmup=2",
        "--dynamic", "input:2=H", "--dynamic", "input:3=W", "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, err
    session = onnxruntime.InferenceSession(tmp_path / "run" / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, "H", "W"]
    assert np.asarray(session.run(None, {"input": np.zeros((2, 1, 11, 5), np.float32)})[0]).shape == (2, 10)
