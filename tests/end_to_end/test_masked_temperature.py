"""A run with a temperature of masked inputs: the command's recipe, the report and the metadata of the file say what was fitted."""

from __future__ import annotations

import json
import tomllib

import onnx
import pytest

from sparsify.runs.workflow import run
from tests.end_to_end.test_work_kept import files, recipe_of

__all__ = ["files"]


def test_a_run_tells_ratio_rounds_and_temperature(files, tmp_path):
    run(recipe_of(files, calibrator="masked-temperature:0.4:3"), tmp_path / "run", timed=False)
    written = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())
    assert written["export"]["calibrator"] == "masked-temperature:0.4:3"
    fitted = json.loads((tmp_path / "run" / "metrics.json").read_text())["model"]["calibration"]
    assert fitted["kind"] == "masked-temperature"
    props = {prop.key: prop.value for prop in onnx.load(tmp_path / "run" / "model.onnx").metadata_props}
    assert props["calibration"] == "masked-temperature:0.4:3"
    told = json.loads(props["calibration_fit"])
    assert (told["ratio"], told["rounds"], told["temperature"]) == (
        0.4,
        3,
        pytest.approx(fitted["temperature"], rel=1e-6),
    )
    assert {"nll_before", "nll_after", "masked_nll_before", "masked_nll_after"} <= told.keys()
    assert "found by the fit" in (tmp_path / "run" / "report.html").read_text()
