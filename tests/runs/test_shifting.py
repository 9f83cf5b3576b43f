"""A run measures its models under shift as `sparsify evaluate` measures their files; what cannot be shifted is refused before training."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sparsify.errors import DataError
from sparsify.evaluation import evaluate
from sparsify.reading.digits import digits_arrays
from sparsify.reading.shifts import KINDS
from sparsify.reports.summary_measures import figures
from sparsify.runs.pairs import parse_pairs
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run

SHORT = {
    "method": "static",
    "sparsity": 0.5,
    "epochs": 1,
    "threads": 1,
    "warmup": 0,
    **parse_pairs(["data.shift=true"]),
}


@pytest.mark.parametrize("stored", ["bytes", "floats"])
def test_the_figures_are_those_of_the_file(tmp_path, stored):
    arrays = digits_arrays()
    if stored == "floats":
        arrays = {k: v[:, None].astype("f4") / 255 if k[0] == "x" else v for k, v in arrays.items()}
    np.savez(tmp_path / "d.npz", **arrays)
    keys = {**SHORT, "data": f"{tmp_path}/d.npz", "heads": ("lac:0.9", "accept:0.2"), "baseline": stored == "bytes"}
    run(parse_recipe(None, keys), tmp_path / "a", timed=False)
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    for name in ("model", "dense") if stored == "bytes" else ("model",):
        want = evaluate(tmp_path / "a" / f"{name}.onnx", tmp_path / "d.npz", shift=True)["model"]["shift"]
        found = metrics[name]["shift"]
        assert found.keys() == want.keys() and [len(found[kind]) for kind in KINDS] == [5, 5, 5]
        for ours, theirs in zip(rows(found), rows(want), strict=True):
            assert ours.keys() == theirs.keys()
            for key in ("accuracy", "confidence", "ece"):
                assert ours["after"][key] == pytest.approx(theirs["after"][key], abs=1 / 180)  # at most two samples
            assert ours["set_coverage"] == pytest.approx(theirs["set_coverage"], abs=1 / 180)
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Under shift" in page and "6 % of the shorter side" in page
    shown = {key for key in figures(metrics["model"]) if key.startswith("shift")}
    assert shown == {f"shift.{kind}.{key}" for kind in KINDS for key in ("accuracy", "ece")}


def rows(found):
    return [found["unchanged"], *(row for kind in KINDS for row in found[kind])]


@pytest.mark.parametrize(
    ("change", "keys", "words"),
    [
        (
            lambda x: x.reshape(len(x), -1),
            {},
            r"but the inputs of .* are others: they have shape \[N, 64\]. Leave it out",
        ),
        (lambda x: x[:, None] * 8 - 4, {}, r"are others: they are numbers from -4 to 4, no pixels in \[0, 1\]"),
        (lambda x: x[:, None], {"task": "multilabel"}, r"data.shift measures .* and the task is 'multilabel'"),
    ],
)
def test_what_cannot_be_shifted_is_refused_before_training(tmp_path, change, keys, words):
    arrays = {k: change(v.astype("f4") / 255) if k[0] == "x" else v for k, v in digits_arrays().items()}
    if keys:
        arrays |= {k: np.eye(10, dtype="f4")[v] for k, v in arrays.items() if k[0] == "y"}
    np.savez(tmp_path / "d.npz", **arrays)
    (tmp_path / "m.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    given = {**SHORT, **keys, "data": f"{tmp_path}/d.npz", "model": f"{tmp_path}/m.py:build"}
    with pytest.raises(DataError, match=words):
        run(parse_recipe(None, given), tmp_path / "a", timed=False)
    assert not (tmp_path / "a").exists()
