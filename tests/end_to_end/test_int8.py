"""int8 files from the command: of a run, and of a program it saved."""

from __future__ import annotations

import json

import pytest

from sparsify.exporters import int8_dense
from sparsify.reports import int8_sentence
from tests.end_to_end.test_command import SHORT, sparsify


def test_int8_of_a_saved_program_is_shown_beside_fp32(capsys, tmp_path):
    run = tmp_path / "run"
    code, _, err = sparsify(
        capsys, "run", "--out", run, "--export-precision", "int8", "--set", "train.epochs=2", *SHORT
    )
    assert code == 0, err
    arguments = ("export", run / "program.sparsify", "--out", tmp_path / "m.onnx", "--precision", "int8", "--batch", 8)
    code, out, err = sparsify(capsys, *arguments, "--recipe", run / "recipe.toml")
    assert code == 0, err
    text = " ".join(out.split())
    assert "layers in int8" in text and "written," in text and "accuracy" in text and "Calibration head:" in text
    code, _, err = sparsify(capsys, *arguments, "--recipe", run / "recipe.toml", "--data", "digits", "--overwrite")
    assert code == 2 and "leave out --data" in err
    code, _, err = sparsify(
        capsys, "run", "--out", tmp_path / "b", "--set", "export.batch=5000", "--export-precision", "int8", *SHORT
    )
    assert code == 2 and "export.batch is 5000" in err and "Lower it" in err


@pytest.mark.filterwarnings("always::sparsify.errors.ExportWarning")
def test_a_run_whose_int8_form_is_refused_is_whole_and_says_why(capsys, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ValueError("no kernel for it")

    monkeypatch.setattr(int8_dense.quantization, "quantize_static", fails)
    options = ("--export-precision", "int8", "--pattern", "unstructured", "--set", "train.epochs=1")
    code, _, err = sparsify(capsys, "run", "--out", tmp_path / "a", *options, *SHORT)
    assert code == 0, err
    assert "note: " in err and "computes in fp32, not in int8" in err and "no kernel for it" in err
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    row = metrics["model"]["int8"]
    assert "missing" not in metrics and row["form"] == "dense, fp32" and "no kernel for it" in row["refused"]
    assert row["held_out"]["outputs"].keys() == {"logits", "probabilities"} and row["agreement"] == 1
    assert "No int8 form may stand in for the program" in int8_sentence(row)
    report = (tmp_path / "a" / "report.html").read_text()
    assert "outputs compared, and how far each is off" in report
