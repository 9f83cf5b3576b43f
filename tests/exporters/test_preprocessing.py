"""Files that say how they are fed, and files that take bytes and prepare them themselves."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import sparsify as sp
from sparsify.errors import ExportError
from sparsify.exporters import Preprocessing
from tests.cases import digits


class Colours(nn.Module):
    """A convolution over three channels, grouped layers enough for an `If` on the batch behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, x):
        return self.body(torch.relu(self.conv(x)).flatten(1))


def pictures(count=8):
    """Digits in three colours, uint8 [N, 3, 8, 8]."""
    x = (digits(count)[0] * 255).to(torch.uint8)
    return torch.cat([x, 255 - x, x // 2], dim=1)


MEAN, STD = (0.3, 0.7, 0.1), (0.4, 0.35, 0.2)


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    traced = sp.trace(Colours(), (Preprocessing(MEAN, STD).inputs(pictures()),))
    return sp.Pipeline.parse("insert-masks{pattern=grouped:32 density=0.3 keep-dense=conv.weight}")(traced.eval())


def test_inputs_by_hand_and_back():
    prepare = Preprocessing((0.5, 0.0), (0.25, 2.0), layout="NHWC")
    stored = torch.tensor([[[[0, 255]], [[255, 51]]]], dtype=torch.uint8)  # [1, 2, 1, 2]
    expected = torch.tensor([[[[-2.0], [2.0]], [[0.5], [0.1]]]])
    assert torch.allclose(prepare.inputs(stored), expected)
    assert torch.equal(prepare.stored(expected), stored)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("form", ["dense", "grouped"])
def test_a_file_takes_bytes_and_gives_what_the_program_gives_for_them(layout, form, program, tmp_path):
    prepare = Preprocessing(MEAN, STD, layout=layout)
    x = prepare.inputs(pictures() if layout == "NCHW" else pictures().permute(0, 2, 3, 1))
    result = sp.export(
        program, tmp_path / "m.onnx", inputs=[x], form=form, preprocessing=prepare, input_type="uint8", classes=("a",)
    )
    assert result.parity.decisions == 9
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert ("If" in {node.op_type for node in model.graph.node}) == (form == "grouped")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (given,) = session.get_inputs()
    sizes = [3, 8, 8] if layout == "NCHW" else [8, 8, 3]
    assert (given.type, given.shape[1:]) == ("tensor(uint8)", sizes)
    bytes_ = pictures(5) if layout == "NCHW" else pictures(5).permute(0, 2, 3, 1)
    for count in (1, 5):
        (have,) = session.run(["logits"], {given.name: bytes_[:count].numpy()})
        want = program.outputs(
            (pictures(count).float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        )
        assert np.abs(have - want["logits"].detach().numpy()).max() < 1e-5
    told = session.get_modelmeta().custom_metadata_map
    assert told["layout"] == layout and told["input_type"] == "uint8" and told["preprocessing"] == "in the graph"
    assert json.loads(told["value_range"]) == [0, 255] and json.loads(told["classes"]) == ["a"]


def test_a_float_file_says_what_its_caller_has_to_do(program, tmp_path):
    prepare = Preprocessing(MEAN, STD)
    x = prepare.inputs(pictures())
    sp.export(
        program, tmp_path / "m.onnx", inputs=[x], preprocessing=prepare, classes=["x", "y"], task="classification"
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    told = session.get_modelmeta().custom_metadata_map
    assert told["task"] == "classification" and told["input_type"] == "float32" and told["layout"] == "NCHW"
    assert json.loads(told["classes"]) == ["x", "y"] and json.loads(told["inputs"]) == [session.get_inputs()[0].name]
    mean, std = (np.array(json.loads(told[key]), np.float32)[:, None, None] for key in ("mean", "std"))
    by_hand = (pictures().numpy().astype(np.float32) / float(told["scale"]) - mean) / std
    assert np.abs(by_hand - x.numpy()).max() < 1e-6
    low, high = json.loads(told["value_range"])
    assert low <= by_hand.min() and by_hand.max() <= high and low == pytest.approx(-2) and high == pytest.approx(4.5)


def test_an_int8_file_takes_bytes(program, tmp_path):
    prepare = Preprocessing(MEAN, STD)
    x = prepare.inputs(pictures(64))
    sp.export(
        program, tmp_path / "m.onnx", inputs=[x], precision="int8", calibration=[x], held_out=[x], preprocessing=prepare, input_type="uint8"
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (have,) = session.run(["logits"], {session.get_inputs()[0].name: pictures(64).numpy()})
    want = program.outputs(x)["logits"].detach().numpy()
    assert (have.argmax(1) == want.argmax(1)).mean() > 0.9


def test_a_picture_is_fed_with_onnxruntime_numpy_and_pillow_only(program, tmp_path):
    prepare = Preprocessing(MEAN, STD, layout="NHWC")
    images = pictures().permute(0, 2, 3, 1)
    sp.export(
        program, tmp_path / "m.onnx", inputs=[prepare.inputs(images)], preprocessing=prepare, input_type="uint8",
        classes=[f"class {k}" for k in range(10)],
    )  # fmt: skip
    Image.fromarray(images[3].numpy()).save(tmp_path / "picture.png")
    code = """
        import json, sys
        import numpy, onnxruntime
        from PIL import Image
        session = onnxruntime.InferenceSession("m.onnx")
        pixels = numpy.asarray(Image.open("picture.png"))
        (logits,) = session.run(["logits"], {session.get_inputs()[0].name: pixels[None]})
        print(json.loads(session.get_modelmeta().custom_metadata_map["classes"])[logits.argmax()])
        assert "torch" not in sys.modules and "sparsify" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    want = int(program.outputs(prepare.inputs(images[3:4]))["logits"].argmax())
    assert (done.stdout, done.stderr) == (f"class {want}\n", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_type": "uint8"}, "none is given"),
        ({"input_type": "int8"}, "one of float, uint8"),
        ({"preprocessing": Preprocessing((0.1, 0.2))}, "2 channels, input 'x' has 3"),
    ],
)
def test_what_does_not_fit_is_refused(options, message, program, tmp_path):
    with pytest.raises(ExportError, match=message):
        sp.export(program, tmp_path / "m.onnx", inputs=[torch.zeros(2, 3, 8, 8)], **options)
    assert not (tmp_path / "m.onnx").exists()


def test_inputs_that_are_no_images_are_refused(tmp_path):
    tokens = sp.trace(nn.Sequential(nn.Embedding(17, 4), nn.Flatten(), nn.Linear(16, 3)), (torch.zeros(2, 4).long(),))
    with pytest.raises(ExportError, match="int64"):
        sp.export(tokens, tmp_path / "m.onnx", inputs=[torch.zeros(2, 4).long()], preprocessing=Preprocessing())
    flat = sp.trace(nn.Linear(4, 3), (torch.zeros(2, 4),))
    with pytest.raises(ExportError, match="NHWC is for images"):
        sp.export(flat, tmp_path / "m.onnx", inputs=[torch.zeros(2, 4)], preprocessing=Preprocessing(layout="NHWC"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": (0.0,)}, "above 0"),
        ({"scale": 0.0}, "above 0"),
        ({"mean": (float("nan"),)}, "finite"),
        ({"mean": (0.1, 0.2), "std": (1.0, 1.0, 1.0)}, "2 channels and std 3"),
        ({"layout": "HWC"}, "NCHW, NHWC"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ExportError, match=message):
        Preprocessing(**options)


@pytest.mark.parametrize("key", ["scale", "inputs"])
def test_metadata_that_the_export_writes_itself_keep_their_values(key, program, tmp_path):
    x = Preprocessing(MEAN, STD).inputs(pictures())
    with pytest.raises(ExportError, match=rf"the metadata have {key!r} twice.*give metadata another key"):
        sp.export(
            program, tmp_path / "m.onnx", inputs=[x], preprocessing=Preprocessing(MEAN, STD), metadata={key: "mine"}
        )
    assert not [*tmp_path.iterdir()]
