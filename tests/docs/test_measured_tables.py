"""Tables of figures on pages are those that the benchmarks print of what is stored."""

import argparse
import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def benchmark(name, kept=None):
    """A script, and what it stored, in a file of its own name or in ``kept``."""
    stored = json.loads((ROOT / "benchmarks" / "results" / f"{kept or name}.json").read_text())
    return runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py")), stored


@pytest.mark.parametrize("data", ["synthetic", "alike", "images"])
def test_the_page_of_inva(data):
    script, stored = benchmark("inva")
    page = (ROOT / "docs" / "inva.md").read_text(encoding="utf-8")
    shown = [script["table"], *([script["intervals"]] if data != "alike" else [])]
    for lines in shown:
        assert "\n".join(lines(stored["cells"], data)) in page
    assert not any(cell["random"] for cell in stored["cells"])


def test_the_page_of_tasks():
    script, stored = benchmark("tasks")
    assert "\n".join(script["table"](stored["rows"])) in (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")


def test_the_table_of_layer_forms():
    script, stored = benchmark("layer_forms", kept="layer_forms_avx2")
    assert script["table"](stored["rows"]) in (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("lines", ["figures", "table"])
def test_the_page_of_calibrators(lines):
    script, stored = benchmark("calibrators")
    page = (ROOT / "docs" / "calibrators_measured.md").read_text(encoding="utf-8")
    assert "\n".join(script[lines](stored["rows"])) in page


def test_the_table_of_what_heads_cost():
    script, stored = benchmark("heads_cost")
    assert {row["row"] for row in stored["rows"]} == {*script["rows_of_heads"]()}
    page = (ROOT / "docs" / "out_of_distribution.md").read_text(encoding="utf-8")
    assert "\n".join(script["table"](stored)) in page
    low, high = (f"{value:.3f}" for value in stored["noise"])
    assert f"that file against itself: {low} to {high}" in page


@pytest.mark.parametrize("data", ["cora", "fashion"])
def test_the_page_of_calirare(data):
    script, stored = benchmark("calirare")
    assert len(stored["cells"]) == 2 * len(script["SPARSITIES"]) * len(script["ARMS"]) * len(script["SEEDS"])
    page = (ROOT / "docs" / "methods" / "calirare.md").read_text(encoding="utf-8")
    assert "\n".join(script["table"](stored["cells"], data)) in page


def test_differences_of_calibrators_are_those_of_their_figures():
    _, stored = benchmark("calibrators")
    rows = [row for row in stored["rows"] if row["of"] == "head"]
    base = {row["network"]: row["figures"] for row in rows if row["head"] == "uncalibrated"}
    assert len(rows) == 36
    for row in rows:
        for name, found in row["differences"].items():
            expected = row["figures"][name] - base[row["network"]][name]
            assert found["difference"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ratio", [20, 100])
@pytest.mark.parametrize("lines", ["table", "over_seeds", "sentences"])
def test_the_page_of_what_pruning_broke(ratio, lines):
    script, stored = benchmark("pruning_damage")
    page = (ROOT / "docs" / "pruning_damage.md").read_text(encoding="utf-8")
    cells = script["of"](stored["cells"], ratio)
    assert "\n".join(script[lines](cells, script["unpacked"](stored["labels"]))) in page
    rows = script["ROWS"] if ratio == 20 else ("dense", "gmp", "balancing-act", "class-weighted")
    assert {(cell["row"], cell["seed"]) for cell in cells} == {(row, seed) for row in rows for seed in (0, 1, 2)}


@pytest.mark.parametrize("lines", ["table", "sentences"])
def test_the_page_of_layers_that_classes_need(lines):
    script, stored = benchmark("class_allocation")
    page = (ROOT / "docs" / "pruning_damage.md").read_text(encoding="utf-8")
    assert "\n".join(script[lines](stored["cells"])) in page
    keys = ("sparsity", "loss", "allocation", "seed")
    order = [tuple(cell[key] for key in keys) for cell in script["order"](script["SEEDS"])]
    assert sorted(tuple(cell[key] for key in keys) for cell in stored["cells"]) == sorted(order)


@pytest.mark.parametrize(("part", "page"), [("objectives", "calibrating_losses"), ("moon", "moon")])
def test_the_pages_of_losses(part, page):
    script, stored = benchmark("objectives")
    assert len(stored["cells"]) == 3 * (3 * len(script["OBJECTIVES"]) + 3 * len(script["UNKNOWN"]))
    text = (ROOT / "docs" / "methods" / f"{page}.md").read_text(encoding="utf-8")
    assert "\n".join(script["table"](part, stored["cells"])).strip() in text


def test_the_page_of_masked_temperatures():
    script, stored = benchmark("masked_temperature")
    page, cells = (ROOT / "docs" / "masked_temperature.md").read_text(encoding="utf-8"), stored["cells"]
    assert len(cells) == 25
    for lines in (
        script["table"](cells, "ece"),
        script["table"](cells, "nll"),
        script["of_digits"](cells),
        script["outcome"](cells),
    ):
        assert "\n".join(lines) in page


TRAINING_TIME = (ROOT / "docs" / "training_time.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("sparsities", "groups", "batches", "allocations", "threads", "least"),
    [
        ((0.8, 0.9, 0.949, 0.95), (64,), "small", ("erk", "uniform"), 1, 28),
        ((0.8, 0.9, 0.95), (64,), "large", ("uniform",), 1, 13),
        ((0.9,), (32, 128), "small", ("uniform",), 1, 10),
        ((0.9,), (64,), "small", ("uniform",), 2, 5),
    ],
)
def test_the_steps_of_the_page_of_training_time(sparsities, groups, batches, allocations, threads, least):
    script, stored = benchmark("train_speed")
    given = {"networks": [*script["NETWORKS"]], "sparsities": sparsities, "groups": groups}
    options = argparse.Namespace(**given, batches=[batches], allocations=allocations)
    rows = script["rows_of"](stored["rows"], script["all_settings"](options), threads)
    assert len(rows) >= least and script["table"](rows) in TRAINING_TIME


def test_the_runs_of_the_page_of_training_time():
    for name in ("train_command", "train_frontier"):
        script, stored = benchmark(name)
        for part in "\n".join(script["table"](stored["cells"])).split("\n\n"):
            assert part in TRAINING_TIME
