"""Which head a program and its file have is said by its name; a name from a file is data."""

from __future__ import annotations

import json
import sys
import zipfile
from dataclasses import dataclass
from typing import ClassVar

import onnxruntime
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import fit, head_of, kind_of
from sparsify.errors import LoadError, PassError, RecipeError, TrainingError
from sparsify.heads import HEADS, Temperature, Vector, register
from sparsify.ir.heads import head_names
from sparsify.parts.samples import TensorSamples
from tests.cases import digits


@dataclass(frozen=True)
class Twin(Vector):
    """A head with the buffers of another."""

    name: ClassVar = "twin"
    tasks: ClassVar = ("classification",)


@pytest.fixture
def twin():
    with HEADS.forgetting():
        yield register(Twin())


def calibrated(kind):
    """A classifier of digits with a head, and its samples."""
    x, y = digits(200)
    torch.manual_seed(0)
    plain = sp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (x[:2],)).eval()
    return sp.Pipeline.parse(f"attach-calibration-head{{kind={kind}}}")(plain).eval(), TensorSamples(x, y)


def changed(program, path, change):
    """The file of a program, its output node of the eval phase changed."""
    program.save(path)
    with zipfile.ZipFile(path) as archive:
        document, state = json.loads(archive.read("program.json")), archive.read("state.safetensors")
    change(document["graphs"]["eval"][-1])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("program.json", json.dumps(document))
        archive.writestr("state.safetensors", state)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "temperature",
        "vector",
        "matrix",
        "dirichlet",
        "ensemble-temperature",
        "isotonic",
        "histogram",
        "h-calibration",
        "twin",
    ],
)
def test_the_name_of_a_head_is_kept_through_passes_and_files_and_is_in_the_text(twin, kind, tmp_path):
    program, samples = calibrated(kind)
    program.save(tmp_path / "p.sparsify")
    loaded = sp.Program.load(tmp_path / "p.sparsify").eval()
    deployed = sp.Pipeline.parse("deploy")(loaded.clone())
    for found in (program, loaded, deployed):
        assert head_names(found) == (kind,) and head_of(found) is HEADS[kind]
        assert found.text().splitlines()[-1].endswith(f"  : head {kind}")
    assert fit(loaded, samples).kind == kind
    replaced = sp.Pipeline.parse("attach-calibration-head{kind=temperature replace=true}")(loaded)
    assert head_names(replaced) == ("temperature",)


def test_the_file_of_an_earlier_version_has_the_head_of_its_buffers(tmp_path):
    program, samples = calibrated("vector")
    path = changed(program, tmp_path / "p.sparsify", lambda output: output.pop("heads"))
    loaded = sp.Program.load(path).eval()
    assert head_names(loaded) == () and kind_of(loaded) == "vector" and "head" not in loaded.text().splitlines()[-1]
    assert fit(loaded, samples).kind == "vector"
    result = sp.export(loaded, tmp_path / "m.onnx", inputs=[samples.inputs[:8]])
    assert metadata(result.path)["calibration"] == result.head == "vector"


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ({"probabilities": "x" * 129}, "at most 128 items"), ({"probabilities": "a\nb"}, "holds control characters"),
        ({"probabilities": ""}, "at least 1 item"), ({"probabilities": 3}, "valid string"), ("vector", "valid dict"),
        ({"lower": "vector"}, "eval has no output 'lower' that a calibration head could make"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_are_refused_where_a_file_is_read(heads, words, tmp_path):
    program, _ = calibrated("vector")
    path = changed(program, tmp_path / "p.sparsify", lambda output: output.update(heads=heads))
    with pytest.raises(LoadError, match=words):
        sp.Program.load(path)


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ({"probabilities": "this:s"}, r"has the calibration head 'this:s' with the buffers .*, and no head of that name is installed"),
        ({"probabilities": "this"}, "no head of that name is installed. Install the package"),
        ({"probabilities": "temperature"}, r"scale \[10\], bias \[10\], .*; the installed head .* has temperature of 0"),
        ({"probabilities": "vector", "logits": "temperature"}, "names the calibration heads 'vector', 'temperature' for its outputs"),
    ],
)  # fmt: skip
def test_a_name_that_is_not_that_of_the_head_is_told_where_the_head_is_needed(heads, words, tmp_path):
    program, samples = calibrated("vector")
    sys.modules.pop("this", None)
    path = changed(program, tmp_path / "p.sparsify", lambda output: output.update(heads=heads))
    loaded = sp.Program.load(path).eval()
    assert kind_of(loaded) is None and "this" not in sys.modules
    with pytest.raises(TrainingError, match=words):
        fit(loaded, samples)
    replaced = sp.Pipeline.parse("attach-calibration-head{kind=vector replace=true}")(loaded.clone()).eval()
    assert kind_of(replaced) == "vector" and replaced.output_names("eval") == ("logits", "probabilities")
    result = sp.export(loaded, tmp_path / "m.onnx", inputs=[samples.inputs[:8]])
    named = heads["probabilities"] if "this" in heads["probabilities"] else None
    assert metadata(result.path).get("calibration") == result.head == named and "this" not in sys.modules


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("knn:5:900000000", r"the calibration head 'knn:5:900000000' with the buffers bank \[20, "), ("knn:5:19", "'knn:5:19' with"),
        ("knn:5:99999999999999999999", "Install the version"), ("knn:", "the calibration head 'knn:' with"), ("mahalanobis", "'mahal"),
    ],
)  # fmt: skip
def test_a_score_that_is_not_that_of_its_buffers_is_told_where_it_is_fitted(spec, words, tmp_path):
    program, samples = calibrated("vector")
    program = sp.Pipeline.parse("attach-calibration-head{kind=knn:5:20}")(program).eval()
    path = changed(program, tmp_path / "p.sparsify", lambda output: output["heads"].update(ood_score=spec))
    with pytest.raises(TrainingError, match=words):
        fit(sp.Program.load(path).eval(), samples, training=samples)


def test_every_exported_file_names_its_head(twin, tmp_path):
    for kind in ("temperature", "twin", "none"):
        program, samples = calibrated("vector" if kind == "none" else kind)
        program = (
            sp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (samples.inputs[:2],)).eval()
            if kind == "none"
            else program
        )
        assert (
            metadata(sp.export(program, tmp_path / "m.onnx", inputs=[samples.inputs[:8]]).path)["calibration"] == kind
        )


def test_a_head_without_buffers_is_that_of_a_program_that_names_it():
    program, _ = calibrated("vector")
    plain = sp.trace(nn.Linear(4, 3), (torch.rand(2, 4),)).eval()
    with HEADS.forgetting():
        register(type("Bare", (Temperature,), {"name": "bare", "buffers": {}, "tasks": ("classification",), **BARE})())
        assert kind_of(plain) is None and kind_of(program) == "vector"
        attached = sp.Pipeline.parse("attach-calibration-head{kind=bare}")(plain.clone()).eval()
        assert kind_of(attached) == "bare" and not list(attached.buffers())
        replaced = sp.Pipeline.parse("attach-calibration-head{kind=vector replace=true}")(attached)
    assert kind_of(replaced) == "vector" and replaced.output_names("eval") == ("logits", "probabilities")


BARE = {"identity": lambda self, shape: {}, "scaled": lambda self, call, output, state: output}


def test_a_program_has_one_head():
    program, _ = calibrated("vector")
    with (
        HEADS.forgetting(),
        pytest.raises(PassError, match="already has a head, which makes probabilities"),
    ):
        register(
            type("Other", (Temperature,), {"name": "other", "outputs": ("sharper",), "tasks": ("classification",)})()
        )
        sp.Pipeline.parse("attach-calibration-head{kind=other}")(program)


@pytest.mark.parametrize("name", ["auto", "none", "x" * 65, "a\tb"])
def test_a_head_has_a_name_that_files_can_keep(name):
    with pytest.raises(
        RecipeError, match="at most 64 printable characters, no colon, and be neither 'auto' nor 'none'"
    ):
        register(type("Strange", (Temperature,), {"name": name})())


def metadata(path):
    return onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
