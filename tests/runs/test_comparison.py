"""Cells in processes: how many at once, what a folder must hold. tests/end_to_end/test_compare.py runs whole grids."""

from __future__ import annotations

import json
import os
import sys

import pytest

import sparsify.runs.comparison as comparison
from sparsify.errors import RecipeError, ReportError, TraceError
from sparsify.files import write_json
from sparsify.runs.comparison import FAILED, available, finished, folder_of, run_grid, write_comparison
from sparsify.runs.grid import parse_grid

TEXT = '[grid]\nmethods = ["rigl"]\nsparsities = [0.9]\nseeds = [0, 1]\n'


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "grid.toml").write_text(TEXT)
    return parse_grid(tmp_path / "grid.toml")


@pytest.mark.parametrize(
    ("keys", "cores", "processes"),
    [
        ((), 1, 1),
        ((), 7, 7),
        (("train.threads=2",), 7, 3),
        (("train.threads=2", "train.workers=1"), 7, 2),
        (("train.threads=4",), 4, 1),
    ],
)
def test_cells_share_the_budget_of_cores(tmp_path, grid, keys, cores, processes):
    cells = parse_grid(tmp_path / "grid.toml", keys).cells()
    assert comparison._at_once(cells, cores) == processes


def test_a_cell_that_is_wider_than_the_budget_is_refused_before_anything_is_written(tmp_path, grid):
    wide = parse_grid(tmp_path / "grid.toml", ["train.threads=2", "train.workers=3"])
    with pytest.raises(RecipeError, match=r"takes 5 cores .*threads = 2, workers = 3.*--cores is 4"):
        run_grid(wide, tmp_path / "out", cores=4)
    assert not (tmp_path / "out").exists() and available() >= 1


def test_a_mistake_of_all_cells_is_found_before_any_process_starts(tmp_path, grid, monkeypatch):
    def refuse(*_):
        raise TraceError("no such model")

    monkeypatch.setattr(comparison, "check_cells", refuse)
    monkeypatch.setattr(comparison._Pool, "run", lambda *_: pytest.fail("a process would have been started"))
    with pytest.raises(TraceError, match="no such model"):
        run_grid(grid, tmp_path / "out", cores=1)


WIDE = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))
"""


def test_every_cell_that_cannot_be_run_is_named_before_any_starts(tmp_path, monkeypatch):
    (tmp_path / "m.py").write_text(WIDE)
    lists = (
        '[grid]\nmethods = ["static", "odd", "gmp"]\nsparsities = [0.5, 0.9999]\nseeds = [0, 1]\n'
        '[grid.variants.odd]\nmethod = { name = "static", pattern = "block:7x7" }\n'
    )
    (tmp_path / "grid.toml").write_text(f'[model]\nsource = "{tmp_path}/m.py:build"\n[train]\nepochs = 2\n{lists}')
    monkeypatch.setattr(comparison._Pool, "run", lambda *_: pytest.fail("a process would have been started"))
    with pytest.raises(RecipeError, match="cells cannot be run, so none was started") as raised:
        run_grid(parse_grid(tmp_path / "grid.toml"), tmp_path / "out", cores=1)
    text = str(raised.value)
    bad = [
        f"{cell} seed {seed}" for cell in ("static 0.9999", "odd 0.5", "odd 0.9999", "gmp 0.9999") for seed in (0, 1)
    ]
    assert text.startswith("8 of 14 cells") and all(cell in text for cell in bad)
    assert "static 0.5 " not in text and "lowest density" in text and not (tmp_path / "out").exists()


def test_a_folder_without_a_result_has_no_table(tmp_path, grid):
    with pytest.raises(ReportError, match=r"has no grid\.toml"):
        write_comparison(tmp_path / "nowhere")
    with pytest.raises(ReportError, match=r"no cell of .* is finished\. dense seed 0: not finished"):
        write_comparison(tmp_path)
    cell = grid.cells()[0]
    write_json(folder_of(cell, tmp_path) / FAILED, {"error": "the data are gone", "defect": False})
    with pytest.raises(ReportError, match="dense seed 0: the data are gone"):
        write_comparison(tmp_path)
    assert not finished(cell, tmp_path) and not list(tmp_path.glob("compare.*"))


class Elsewhere(Exception):
    """Stands for a defect."""


@pytest.mark.parametrize(
    ("raised", "said", "defect"),
    [
        (TraceError("no trace of it"), "no trace of it", False),
        (OSError(28, "No space left on device"), "No space left", False),
        (Elsewhere("what?"), "Elsewhere: what? (a defect; see", True),
    ],
)
def test_what_a_cell_raises_is_written_beside_it(tmp_path, grid, monkeypatch, raised, said, defect):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(comparison, "run", fail)
    cell = grid.cells()[0]
    receiver, sender = comparison.multiprocessing.Pipe(duplex=False)
    pid = os.fork()  # what the function does to its process' output stays in a process of its own
    if pid == 0:
        with open(os.devnull, "w") as out:
            sys.stdout = sys.stderr = out
            comparison.work(cell, tmp_path / "cell", sender)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    receiver.close()
    content = json.loads((tmp_path / "cell" / FAILED).read_text())
    assert said in content["error"] and content["defect"] is defect
    assert ("Traceback" in (tmp_path / "cell" / "output.log").read_text()) is defect
