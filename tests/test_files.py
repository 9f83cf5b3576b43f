"""Files that are written whole: JSON that every reader takes."""

from __future__ import annotations

import json
import math

import numpy as np

from sparsify.files import write_json
from sparsify.reports.folder import read_measured
from tests.end_to_end.test_work_kept import files, recipe_of

__all__ = ["files"]


def test_what_is_not_finite_is_null(tmp_path):
    value = {"a": [1.5, math.nan, (math.inf, np.float64("-inf"))], "b": {"c": np.float64(0.25)}, "d": "NaN", "e": True}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": [1.5, None, [None, None]], "b": {"c": 0.25}, "d": "NaN", "e": True}


def test_a_history_with_a_loss_that_is_not_finite_is_read_again(files, tmp_path):
    from sparsify.runs.workflow import run

    run(recipe_of(files, epochs=1), tmp_path / "a", timed=False)
    path = tmp_path / "a" / "history.jsonl"
    (row,) = map(json.loads, path.read_text().splitlines())
    path.write_text(json.dumps({**row, "val_loss": None}) + "\n")
    _, history = read_measured(tmp_path / "a")
    assert math.isnan(history[0]["val_loss"]) and history[0]["loss"] == row["loss"]
