"""int8 files from the command: of a run, and of a program it saved."""

from __future__ import annotations

from tests.end_to_end.test_command import SHORT, sparsify


def test_int8_of_a_saved_program_is_shown_beside_fp32(capsys, tmp_path):
    run = tmp_path / "run"
    code, _, err = sparsify(capsys, "run", "--out", run, "--export-precision", "int8", "--set", "epochs=2", *SHORT)
    assert code == 0, err
    arguments = ("export", run / "program.sparsify", "--out", tmp_path / "m.onnx", "--precision", "int8", "--batch", 8)
    code, out, err = sparsify(capsys, *arguments, "--recipe", run / "recipe.toml")
    assert code == 0, err
    text = " ".join(out.split())
    assert "layers in int8" in text and "written," in text and "accuracy" in text and "Calibration head:" in text
    code, _, err = sparsify(capsys, *arguments, "--recipe", run / "recipe.toml", "--data", "digits", "--overwrite")
    assert code == 2 and "leave out --data" in err
    code, _, err = sparsify(capsys, "run", "--out", tmp_path / "b", "--set", "export_batch=1000", *SHORT)
    assert code == 2 and "export_batch is 1000" in err and "Lower it" in err
