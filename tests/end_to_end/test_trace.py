"""`sparsify trace`: what a user sees of a model of their own, with and without data, before training it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsify.ir import Program
from tests.cases import CASES
from tests.end_to_end.test_command import sparsify

EXAMPLES = Path(__file__).parents[2] / "examples"
TRANSFORMERS = """
import transformers

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def vit():
    config = transformers.ViTConfig(**SMALL, image_size=16, patch_size=4, num_channels=1, num_labels=10)
    model = transformers.ViTForImageClassification(config)
    model.set_attn_implementation("eager")
    return model


def bert():
    config = transformers.BertConfig(**SMALL, vocab_size=50, max_position_embeddings=16, num_labels=4)
    model = transformers.BertForSequenceClassification(config)
    model.set_attn_implementation("eager")
    return model
"""


def traced(capsys, tmp_path, *arguments):
    """The output of the command, and the program it saved."""
    code, out, err = sparsify(capsys, "trace", *arguments, "--out", tmp_path / "m.sparsify")
    assert code == 0, err
    return " ".join(out.split()), Program.load(tmp_path / "m.sparsify")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "inputs", "linear"),
    [
        ("vit", ["pixel_values=2x1x16x16"], 2 * 6 + 1),
        ("bert", ["input_ids=2x12:int64", "attention_mask=2x12:int64"], 2 * 6 + 2),
    ],
)
def test_transformers(capsys, tmp_path, model, inputs, linear):
    pytest.importorskip("transformers")
    (tmp_path / "models.py").write_text(TRANSFORMERS)
    given = [part for text in inputs for part in ("--input", text)]
    _, program = traced(capsys, tmp_path, f"{tmp_path}/models.py:{model}", *given)
    assert [spec.name for spec in program.input_specs] == [text.partition("=")[0] for text in inputs]
    assert sum(site.kind == "linear" and site.skip is None for site in program.maskable()) == linear


def test_the_example_network(capsys, tmp_path):
    out, program = traced(capsys, tmp_path, f"{EXAMPLES}/cifar.py:resnet20", "--input", "2x3x32x32")
    assert "stage=traced" in out and "64 x 64 x 3 x 3 │ 2,359,296 │ 1 │ yes" in out
    assert program.costs().macs_dense == 40_551_040 + 262_144  # of the paper's network, and of its two projections


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hard_models(capsys, tmp_path, case):
    """Residuals, grouped and depthwise convolutions, tied and shared weights, dict outputs, two inputs."""
    (tmp_path / "models.py").write_text(
        f"from tests.cases import case\n\ndef build():\n    return case({case.name!r}).build()\n"
    )
    shapes = ["x".join(map(str, x[:2].shape)) + (":int64" if not x.is_floating_point() else "") for x in case.args]
    given = [part for text in shapes for part in ("--input", text)]
    out, program = traced(capsys, tmp_path, f"{tmp_path}/models.py:build", *given)
    assert len(program.input_specs) == len(case.args)
    for site in program.maskable():
        assert site.name in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "2x1x8x"], "should be SHAPE, NAME=SHAPE or NAME=SHAPE:TYPE"),
        (["--input", "2x3x8x8"], "fails on example inputs of shapes [[2, 3, 8, 8]]"),
        (["--input", "picture=2x1x8x8"], "picture"),
        (["--input", "2x1x8x8", "--weights", "none.safetensors"], "none.safetensors"),
    ],
)
def test_misuse_says_what_to_do(capsys, arguments, message):
    code, _, err = sparsify(capsys, "trace", *arguments)
    assert code == 2 and message in " ".join(err.split()) and "Traceback" not in err


TWO_SCORES = """
from torch import nn


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 12), nn.Linear(12, 10)

    def forward(self, x):
        features = self.body(x.flatten(1))
        return features, self.head(features)
"""


def test_how_training_would_store_each_weight(capsys, tmp_path):
    (tmp_path / "wide.py").write_text(
        "from torch import nn\n\ndef build():\n    layers = [nn.Linear(64, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 10)]\n"
        "    return nn.Sequential(nn.Flatten(), *layers)\n"
    )
    shown, program = traced(capsys, tmp_path, f"{tmp_path / 'wide.py'}:build", "--pattern", "grouped:64")
    assert "compact" in shown and not program.masks()
    shown, _ = traced(capsys, tmp_path, f"{tmp_path / 'wide.py'}:build", "--pattern", "unstructured")
    assert "masked:" in shown and "compact" not in shown
    assert "masked:" not in traced(capsys, tmp_path, f"{tmp_path / 'wide.py'}:build")[0]
    code, _, err = sparsify(capsys, "trace", "--pattern", "unstructured", "--sparsity", "2")
    assert code == 2 and "sparsity should be in (0, 1), found 2.0" in err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", ["data", "input"])
def test_the_logits_are_chosen(capsys, tmp_path, source):
    (tmp_path / "models.py").write_text(TWO_SCORES)
    given = ["--data", "digits"] if source == "data" else ["--input", "2x64"]
    if source == "input":
        code, _, err = sparsify(capsys, "trace", f"{tmp_path}/models.py:Two", *given)
        assert code == 2
        assert "--logits 1" in " ".join(err.split())
    _, program = traced(capsys, tmp_path, f"{tmp_path}/models.py:Two", *given, "--logits", "1")
    assert program.output_names("eval") == ("output_0", "logits")
