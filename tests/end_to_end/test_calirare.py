"""Individual calibration, from the command to the history, the figures and the report; and what is refused before training."""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.test_command import SHORT, sparsify


def test_from_the_command_to_the_report(capsys, tmp_path):
    out = tmp_path / "a"
    pairs = ("method.options.calirare.weight=0.2", "method.options.calirare.samples=60")
    options = ("--method", "calirare(rigl)", *(word for pair in pairs for word in ("--set", pair)))
    code, _, err = sparsify(capsys, "run", "--out", out, *SHORT, *options)
    assert code == 0, err
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert all(0 < row["readings"]["individual_error"] < 1 for row in rows)
    metrics = json.loads((out / "metrics.json").read_text())
    found = metrics["model"]["individual"]
    assert metrics["model"]["method"] == "calirare(rigl)" and 0 < found["eice"] < 0.5
    assert 2 <= found["influences"] <= 256
    assert found["samples"] == sum(row["samples"] for row in found["classes"] if row)
    total = metrics["data"]["samples"]["train"]
    assert metrics["model"]["counts"]["samples"] <= (total - 60) * len(rows)
    report = (out / "report.html").read_text()
    assert "EICE, before" in report and f"{found['influences']} held out" in report


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("method.options.calirare.weight=2", "weight should be between 0.0 and 1.0"),
        ("method.options.calirare.sample=9", "Nearest: calirare.samples"),
        ("train.batch_size=100000", "do not fill a batch"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(capsys, tmp_path, pair, words):
    code, _, err = sparsify(capsys, "run", "--out", tmp_path / "b", *SHORT, "--method", "calirare(rigl)", "--set", pair)
    assert code == 2 and words in " ".join(err.split()), err
    assert not (tmp_path / "b" / "history.jsonl").exists()
