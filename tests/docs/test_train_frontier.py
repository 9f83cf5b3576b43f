"""The benchmark of accuracy against training time: it runs, goes on where it stopped, and says who is ahead."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "train_frontier.py"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """64 images for training and 20 for testing; noise around a grey value per class."""
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 64), ("test", 20)):
        y = np.arange(count) % 10
        x = 20 * y[:, None, None, None] + rng.integers(0, 40, size=(count, 32, 32, 3))
        arrays |= {f"x_{part}": x.astype(np.uint8), f"y_{part}": y.astype(np.int64)}
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, **arrays)
    return path


def words(data, folder, *others):
    rows = ["dense", "narrower", "rigl", "taught-rigl"]
    given = {"--data": [data], "--only": rows, "--budgets": [8, 12], "--seeds": [0], "--batch": [8]}
    given |= {"--json": [folder / "cells.json"], "--folder": [folder]}
    return [str(word) for name, values in given.items() for word in (name, *values)] + list(others)


def test_runs_are_stored_shown_and_not_done_again(data, tmp_path, capsys):
    assert BENCHMARK["main"](words(data, tmp_path)) == 0
    printed = capsys.readouterr().out
    stored = (tmp_path / "cells.json").read_bytes()
    cells = json.loads(stored)["cells"]
    assert len(cells) == 8 and (tmp_path / "train_frontier.svg").read_text().startswith("<svg")
    assert {cell["row"]: cell["steps"] for cell in cells if cell["budget"] == 8}["dense"] == 8
    assert all(cell["seconds"] > 0 and cell["cpu_seconds"] > 0 and 0 <= cell["accuracy"] <= 1 for cell in cells)
    macs = {cell["row"]: cell["macs"] for cell in cells}
    assert macs["narrower"] == pytest.approx(macs["rigl"], rel=0.05), "the rival has as many MACs"
    compact = {cell["row"]: (cell["compact"], cell["masked"]) for cell in cells}
    assert compact["rigl"] == compact["taught-rigl"] == (6, 6) and compact["dense"] == (0, 0)

    assert BENCHMARK["main"](words(data, tmp_path)) == 0
    again = capsys.readouterr().out
    assert "8 runs are stored, 0 are left" in again
    assert (tmp_path / "cells.json").read_bytes() == stored
    assert BENCHMARK["main"](words(data, tmp_path, "--table")) == 0
    shown = capsys.readouterr().out
    assert shown in printed and shown in again


def test_a_lost_teacher_is_trained_again(data, tmp_path, capsys):
    chosen = [*words(data, tmp_path), "--only", "taught-rigl", "--budgets", "8"]
    assert BENCHMARK["main"](chosen) == 0
    assert [cell["row"] for cell in json.loads((tmp_path / "cells.json").read_text())["cells"]] == [
        "dense",
        "taught-rigl",
    ]
    (saved,) = tmp_path.glob("dense_8_*.sparsify")
    saved.unlink()
    assert BENCHMARK["main"]([*chosen, "--seeds", "0", "1"]) == 0
    cells = json.loads((tmp_path / "cells.json").read_text())["cells"]
    assert sorted((cell["row"], cell["seed"]) for cell in cells) == [
        (row, s) for row in ("dense", "taught-rigl") for s in (0, 1)
    ]


def test_nothing_stored(data, tmp_path, capsys):
    assert BENCHMARK["main"](words(data, tmp_path, "--table")) == 1
    assert "holds no run of these options" in capsys.readouterr().err


def test_accuracy_at_a_time_by_hand():
    line = [(10.0, 0.4), (40.0, 0.6)]
    for seconds, expected in ((10.0, 0.4), (20.0, 0.5), (40.0, 0.6), (90.0, 0.6)):
        assert BENCHMARK["reached"](line, seconds) == pytest.approx(expected)
    found = {"dense": {1: {0: (10.0, 0.4), 1: (12.0, 0.5)}}, "rigl": {1: {0: (11.5, 0.7), 1: (11.5, 0.8)}}}
    assert BENCHMARK["at_equal_time"](found, 11.0) == {"dense": [0.4, 0.5]}
    assert BENCHMARK["at_equal_time"](found, 12.0) == {"dense": [0.4, 0.5], "rigl": [0.7, 0.8]}


def test_none_is_ahead_when_ranges_overlap():
    values = {"dense": [0.5, 0.52, 0.54], "rigl": [0.55, 0.56, 0.57], "gmp": [0.1, 0.2, 0.3]}
    assert BENCHMARK["verdict"](values) == "`rigl` is ahead with 56.0 (55.0 to 57.0) %"
    text = BENCHMARK["verdict"]({**values, "dense": [0.5, 0.52, 0.551]})
    assert text == "none is ahead: the range of `rigl`, 56.0 (55.0 to 57.0) %, meets that of `dense`"


def test_sentences_name_a_taught_row_apart():
    figures = {"dense": 0.5, "rigl": 0.6, "taught-rigl": 0.7}
    found = {row: {8: {seed: (10.0, value) for seed in (0, 1)}} for row, value in figures.items()}
    (text,) = BENCHMARK["sentences"](found)
    assert text.startswith("- In the 10 s of 8 dense steps, `rigl` is ahead with 60.0 ")
    assert "where a trained dense network is there to learn from, `taught-rigl` is ahead with 70.0 " in text
