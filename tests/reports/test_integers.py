"""What is said of int8 files, by hand, and the report of a real run with one."""

from __future__ import annotations

import json

import onnx
import pytest

from sparsify.reports import headline, int8_sentence, write_report
from sparsify.reports.headline import sentences
from sparsify.reports.integers import in_int8, int8_layers, int8_rows, int8_trials
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run
from tests.reports.test_headline import part

FIGURES = {"accuracy": 0.95, "nll_after": 0.2, "brier_after": 0.1, "ece_before": 0.05, "ece_after": 0.02}


def integers(**changes):
    base = {
        **part(),
        "fp32": FIGURES,
        "accuracy": 0.94,
        "ece_after": 0.03,
        "bytes": 300,
        "form": "mixed, by layer",
        "layers": {"a": "int8 dense", "b": "fp32 grouped"},
        "batch": 64,
        "threads": 1,
        "agreement": 0.985,
        "held_out": {"samples": 200, "agreed": 199, "largest_error": 0.012},
        "head": "temperature fitted again: 1.2000 before, 1.2500 after",
    }
    return {**base, **changes}


def report(**changes):
    return {"model": {**part(), "int8": integers(**changes)}, "dense": None, "seed": 0, "storage": "dense"}


def test_the_sentence_by_hand():
    assert int8_sentence(integers()) == (
        "The int8 file computes 1 of 2 layers in int8 (mixed, by layer: the fastest form at batch 64, 1 thread(s)); accuracy 0.9400 is "
        "1.00 points below that in fp32, ECE 0.0300 against 0.0200; 98.50 % of the test predictions are those of fp32. Calibration head: "
        "temperature fitted again: 1.2000 before, 1.2500 after."
    )


def test_a_file_that_stayed_fp32_is_called_so():
    text = int8_sentence(integers(layers={"a": "fp32 dense"}, accuracy=0.95))
    assert "0 of 1 layers" in text and "equal to that in fp32" in text and text.endswith("the file is fp32.")


def test_a_refused_file_says_what_was_off_and_every_output_is_listed():
    held = {"samples": 200, "agreed": 200, "largest_error": 0.0, "outputs": {"logits": 0.013, "embedding": 0.0}}
    row = integers(layers={"a": "fp32 dense"}, refused="'dense int8': output 'embedding' is off", held_out=held)
    assert "may stand in for the program ('dense int8': output 'embedding' is off): the file is fp32." in int8_sentence(
        row
    )
    rows = {label: cells for label, *cells in int8_rows({"model": {**part(), "int8": row}, "dense": None})}
    assert rows["outputs compared, and how far each is off"] == ["", "logits 1.3e-02; embedding 0.0e+00"]


def test_rows_stand_beside_fp32():
    rows = {label: cells for label, *cells in int8_rows(report())}
    assert rows["accuracy"] == ["0.9500", "0.9400"] and rows["ECE after calibration"] == ["0.0200", "0.0300"]
    assert rows["size on disk, bytes"] == ["1,000", "300"] and rows["form"] == ["", "mixed, by layer"]
    assert in_int8(report()) == ["model"] and in_int8({"model": part(), "dense": None}) == []


def test_times_of_layers_and_files_where_they_were_kept():
    latency = {
        "int8": {
            "model": {"files": [{"name": "grouped, fp32", "milliseconds": 1.25}], "layers": {"a": {"int8 dense": 0.5}}}
        }
    }
    assert int8_layers(report(), latency) == [("a", "int8 dense", "int8 dense 500 µs"), ("b", "fp32 grouped", "")]
    assert int8_trials(latency) == [("grouped, fp32", "1.25")] and int8_trials(None) == []


def test_the_headline_has_a_column_and_the_speed_a_sentence():
    timings = [
        {"name": name, "milliseconds": ms, "quartiles": (ms, ms), "speedup": 2.0 / ms, "interval": (2.0 / ms, 2.0 / ms)}
        for name, ms in (("model", 2.0), ("model-int8", 0.5))
    ]
    latency = {"timings": timings, "batch": 64, "verdict": None}
    shown = headline(report(), latency)
    assert shown.columns == ("rigl", "rigl, int8") and dict(shown.rows)["accuracy"] == ("0.9500", "0.9400")
    floats = headline(report(layers={"a": "fp32 dense", "b": "fp32 grouped"}), None)
    assert floats.columns == ("rigl", "rigl, int8: fp32 written")
    assert dict(shown.rows)["latency, ms"][1] == "0.500 (0.500 to 0.500)"
    assert sentences(report(), latency)[-1].endswith("At batch 64 it is 4.00 times as fast as the model's fp32 file.")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    keys = {"epochs": 2, "baseline": True, "threads": 1, "export_precision": "int8", "export_batch": 8}
    return folder, run(parse_recipe(None, keys), folder)


def test_a_run_leaves_int8_files_beside_fp32_and_reports_them(finished):
    folder, found = finished
    for name in ("dense", "model"):
        row = json.loads((folder / "metrics.json").read_text())[name]["int8"]
        assert (
            row["batch"] == 8
            and row["agreement"] > 0.95
            and row["bytes"] == (folder / f"{name}-int8.onnx").stat().st_size
        )
        model = onnx.load(folder / f"{name}-int8.onnx")
        assert {node.domain for node in model.graph.node} == {""}
        entries = {entry.key: entry.value for entry in model.metadata_props}
        assert entries["precision"] == row["form"] and entries["recipe_hash"] == found["recipe_hash"]
    assert "milliseconds" not in (folder / "metrics.json").read_text()
    latency = json.loads((folder / "latency.json").read_text())
    assert [row["name"] for row in latency["timings"]] == ["dense", "model", "dense-int8", "model-int8"]
    assert latency["batch"] == 8 and latency["int8"]["model"]["files"] and latency["int8"]["dense"]["layers"]
    page = (folder / "report.html").read_text()
    assert "<h2>In int8</h2>" in page and "gmp, int8" in page and found["model"]["int8"]["form"] in page
    before = page
    write_report(folder)
    assert (folder / "report.html").read_text() == before


def test_the_fp32_file_does_not_depend_on_int8(finished, tmp_path):
    folder, _ = finished
    keys = {"epochs": 2, "baseline": True, "threads": 1}
    run(parse_recipe(None, keys), tmp_path / "b", timed=False)
    plain, beside = (onnx.load(path / "model.onnx") for path in (tmp_path / "b", folder))
    for model in (plain, beside):
        kept = [entry for entry in model.metadata_props if entry.key != "recipe_hash"]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
    assert plain.SerializeToString(deterministic=True) == beside.SerializeToString(deterministic=True)
    assert not list((tmp_path / "b").glob("*-int8.onnx"))
