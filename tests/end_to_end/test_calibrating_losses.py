"""A loss that calibrates, from the command to the history, the report and the file."""

from __future__ import annotations

import json

import onnx
import pytest

from sparsify.runs.recipe import parse_recipe
from tests.end_to_end.test_command import SHORT, sparsify


def test_a_share_on_a_line_from_the_command_to_the_file(capsys, tmp_path):
    out = tmp_path / "a"
    pairs = ("method.options.label-smoothing.smoothing=0.2", "method.options.label-smoothing.smoothing_end=0.1")
    options = ("--method", "label-smoothing(rigl)", *(word for pair in pairs for word in ("--set", pair)))
    code, _, err = sparsify(capsys, "run", "--out", out, *SHORT, *options)
    assert code == 0, err
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    total = rows[-1]["step"]
    for row in rows:
        assert row["readings"] == {"smoothing": pytest.approx(0.2 - 0.1 * (row["step"] - 1) / (total - 1))}
    assert rows[-1]["readings"]["smoothing"] == pytest.approx(0.1)
    assert json.loads((out / "metrics.json").read_text())["model"]["method"] == "label-smoothing(rigl)"
    assert "smoothing ends at 0.1000" in (out / "report.html").read_text()
    recipe = parse_recipe(out / "recipe.toml", {})
    assert recipe.method_options["label-smoothing"] == {"smoothing": 0.2, "smoothing_end": 0.1}
    assert [output.name for output in onnx.load(out / "model.onnx").graph.output] == ["logits", "probabilities"]


def test_what_does_not_fit_is_refused_before_training(capsys, tmp_path):
    for method, pair, words in (
        ("label-smoothing(rigl)", "train.label_smoothing=0.1", "label-smoothing 0.1 would not enter"),
        ("focal(mbls(rigl))", "train.lr=0.1", "has a loss of its own already"),
        ("focal(rigl)", "method.options.focal.gamma=-1", "gamma should be between 0.0 and 100.0"),
        ("focal(rigl)", "method.options.focal.gama=1", "Nearest: focal.gamma"),
    ):
        code, _, err = sparsify(capsys, "run", "--out", tmp_path / "b", *SHORT, "--method", method, "--set", pair)
        assert code == 2 and words in " ".join(err.split()), err
        assert not (tmp_path / "b" / "history.jsonl").exists()
