"""The benchmark of objectives: its cells run, are not computed again, and are compared with those of the same seed."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "objectives.py"))
FILES = {"cifar10_jpeg": (32, 32, 3), "ood_tiny_imagenet": (32, 32, 3), "spoken_digits_logmel": (32, 64)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files with the names and arrays of the data sets: 400 and 100 pictures with a grey value per class and noise."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    for name, shape in FILES.items():
        arrays = {}
        for part, count in (("train", 400), ("test", 100)):
            y = np.arange(count) % 10
            noise = rng.integers(0, 90, size=(count, *shape))
            arrays |= {f"x_{part}": (18 * y.reshape(-1, *[1] * len(shape)) + noise).astype(np.uint8)}
            arrays |= {f"y_{part}": y.astype(np.uint8)}
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def words(data, folder, *others):
    given = {
        "--data": data,
        "--samples": 256,
        "--length": 0.4,
        "--folder": folder / "cells",
        "--json": folder / "o.json",
    }
    return [str(word) for pair in given.items() for word in pair] + list(others)


def test_cells_are_stored_shown_and_not_computed_again(data, tmp_path, capsys):
    chosen = words(
        data,
        tmp_path,
        "--part",
        "objectives",
        "--nets",
        "gmp",
        "--only",
        "ce",
        "rankmixup-ndcg",
        "ps-kd",
        "--seeds",
        "0",
        "1",
    )
    assert BENCHMARK["main"](chosen) == 0
    printed = capsys.readouterr().out
    cells = json.loads((tmp_path / "o.json").read_text())["cells"]
    assert len(cells) == 6 and len([*(tmp_path / "cells").iterdir()]) == 6
    passes = {cell["row"]: (cell["forwards"] / cell["steps"], cell["backwards"] / cell["steps"]) for cell in cells}
    assert passes == {
        "ce": (1, 1),
        "rankmixup-ndcg": (4, 4),
        "ps-kd": (36 / 20, 1),
    }  # four of five epochs have a past
    assert "CIFAR-10, gmp, grouped:32, 90 %" in printed and "| RankMixup, NDCG |" in printed and " ± " in printed
    assert all(0 <= cell["auroc"]["maximum probability"] <= 1 and cell["temperature"] > 0 for cell in cells)
    assert BENCHMARK["main"](chosen) == 0
    again = capsys.readouterr().out
    assert "6 cells are stored, 0 are left" in again
    for file in (tmp_path / "cells").iterdir():
        file.unlink()
    assert BENCHMARK["main"]([*chosen, "--table"]) == 0
    shown = capsys.readouterr().out
    assert shown in printed and shown in again


def test_moon_is_measured_where_samples_are_hard(data, tmp_path, capsys):
    chosen = words(data, tmp_path, "--part", "moon", "--only", "plain", "moon", "--seeds", "0")
    assert BENCHMARK["main"](chosen) == 0
    cells = json.loads((tmp_path / "o.json").read_text())["cells"]
    assert {cell["task"] for cell in cells} == {"augmented", "noisy", "spoken"} and len(cells) == 6
    assert all(("ood_score" in cell["auroc"]) is (cell["row"] == "moon") for cell in cells)
    assert "spoken digits, rigl, 90 %" in capsys.readouterr().out


def test_wrong_labels_are_another_class_for_a_share_of_the_samples(data):
    parts = BENCHMARK["images"](data, 128)
    found = BENCHMARK["Relabelled"](parts.train, 0.2, 3)
    wrong = found.targets != parts.train.targets
    assert 0.08 < float(wrong.double().mean()) < 0.35 and set(found.targets.tolist()) <= set(range(10))
    again = BENCHMARK["Relabelled"](parts.train, 0.2, 3)
    assert found.targets.tolist() == again.targets.tolist() and found.fingerprint() == again.fingerprint()


def test_without_cells_nothing_is_shown(tmp_path, capsys):
    assert BENCHMARK["main"](["--table", "--folder", str(tmp_path), "--json", str(tmp_path / "none.json")]) == 1
    assert "no such cell is stored" in capsys.readouterr().err
