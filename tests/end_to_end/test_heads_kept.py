"""A saved program that is trained on keeps the kind of its calibration head, and every file of the run names it."""

from __future__ import annotations

import json
import tomllib

import onnxruntime
import pytest

from sparsify.calibration import kind_of
from sparsify.ir import Program
from sparsify.runs.exporting import export_saved
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run
from tests.end_to_end.test_work_kept import TINY, files, recipe_of

__all__ = ["files"]


@pytest.fixture(scope="module")
def first(files, tmp_path_factory):
    """The folder of a run whose head is vector scaling."""
    out = tmp_path_factory.mktemp("first")
    run(recipe_of(files, "chance", calibrator="vector", epochs=1), out, timed=False)
    return out


def said(folder):
    """What recipe, program, metrics, report and file of a run say of its head."""
    told = onnxruntime.InferenceSession(str(folder / "model.onnx")).get_modelmeta().custom_metadata_map
    return [
        tomllib.loads((folder / "recipe.toml").read_text())["export"]["calibrator"],
        kind_of(Program.load(folder / "program.sparsify")),
        json.loads((folder / "metrics.json").read_text())["model"]["calibration"]["kind"],
        told["calibration"],
    ]


def test_a_run_keeps_the_head_of_its_program(files, first, tmp_path):
    given = {**TINY, "epochs": 1, "model": f"{first}/program.sparsify", "data": f"{files}/d.py:chance"}
    run(parse_recipe(None, given), tmp_path / "a", timed=False)
    assert said(tmp_path / "a") == ["vector"] * 4
    assert "<td>vector</td>" in (tmp_path / "a" / "report.html").read_text()


def test_an_export_without_and_with_a_recipe_keeps_and_names_the_head(files, first, tmp_path):
    assert said(first) == ["vector"] * 4
    by_run = tmp_path / "by_run.toml"
    by_run.write_text(
        (first / "recipe.toml").read_text().replace('calibrator = "vector"\n', "")
    )  # as the user wrote it: with auto
    for given in ({"data": f"{files}/d.py:chance"}, {"recipe": first / "recipe.toml"}, {"recipe": by_run}):
        result, _ = export_saved(first / "program.sparsify", tmp_path / "m.onnx", overwrite=True, **given)
        told = onnxruntime.InferenceSession(str(result.path)).get_modelmeta().custom_metadata_map
        assert result.head == told["calibration"] == "vector"
        run_says = json.loads((first / "metrics.json").read_text())["recipe_hash"]
        assert told.get("recipe_hash", run_says) == run_says


@pytest.mark.parametrize(
    ("kind", "words"), [("dirichlet", "The head dirichlet, fitted on 20"), ("matrix", "Matrix scaling, fitted on 20")]
)
def test_a_run_has_the_head_that_its_recipe_names_and_its_report_says_what_it_did(files, kind, words, tmp_path):
    run(recipe_of(files, "chance", calibrator=kind, epochs=1), tmp_path, timed=False)
    assert said(tmp_path) == [kind] * 4
    assert f"{words} held-out samples, " in (tmp_path / "report.html").read_text()
    told = json.loads((tmp_path / "metrics.json").read_text())["model"]["calibration"]
    assert told["nll_after"] <= told["nll_before"]
