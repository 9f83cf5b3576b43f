"""A model that ends its process ends that of the rehearsal, never the command, and is refused by the name of its cells."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing import forkserver

import pytest

from sparsify.errors import DataError, LoadWarning, RecipeError
from sparsify.runs.apart import check_cells
from sparsify.runs.comparison import run_grid
from sparsify.runs.grid import parse_grid
from sparsify.runs.recipe import parse_recipe

MODEL = """
import os, signal, warnings
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        {does}
        return self.head(x.flatten(1))

build = Net
"""
ENDS = {
    "exit": ("os._exit(7)", "its rehearsal ended with 7."),
    "segfault": ("os.kill(os.getpid(), signal.SIGSEGV)", "its rehearsal was ended by signal 11"),
}


@pytest.fixture
def recipes(tmp_path):
    """Recipes by name, of models whose forward does something."""

    def made(**models):
        for name, does in models.items():
            (tmp_path / f"{name}.py").write_text(MODEL.format(does=does))
        return {
            f"{name} seed {seed}": parse_recipe(
                None, {"model": f"{tmp_path}/{name}.py:build", "epochs": 1, "seed": seed, "method": method}
            )
            for name in models
            for seed, method in ((0, "static"), (1, "gmp"))
        }

    return made


@pytest.mark.parametrize("name", ENDS)
def test_a_model_that_ends_its_process_is_refused_and_the_others_are_still_checked(recipes, name):
    does, said = ENDS[name]
    cells = recipes(good="pass", bad=does, wrong="x = x[..., :3]")
    with pytest.raises(RecipeError) as raised:
        check_cells(cells)
    text = str(raised.value)
    assert text.startswith("4 of 6 cells cannot be run, so none was started. ")
    assert f"bad seed 0; bad seed 1: {said}" in text and "wrong seed 0; wrong seed 1: Net fails on" in text
    assert "good" not in text


def test_what_can_be_run_is_checked_without_a_word(recipes):
    check_cells(recipes(good="pass"))


def test_a_user_s_own_forkserver_is_left_alone(recipes):
    theirs = vars(forkserver._forkserver).copy()
    check_cells(recipes(good="pass"))
    assert vars(forkserver._forkserver) == theirs
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert pool.apply(_imported) == []


def _imported():
    """What of `AHEAD` a process knows that did nothing yet; pytest imports some of it with this file."""
    return sorted({"matplotlib.backends.backend_svg", "torch.onnx._internal.exporter._compat"} & {*sys.modules})


def test_warnings_and_errors_of_the_rehearsal_are_those_of_the_command(recipes, tmp_path):
    with pytest.warns(LoadWarning, match="said in forward"):
        check_cells(
            recipes(loud="from sparsify.errors import LoadWarning; warnings.warn('said in forward', LoadWarning)")
        )
    with pytest.raises(DataError, match="there is no data file"):
        check_cells({"x": parse_recipe(None, {"data": str(tmp_path / "none.npz")})})


def test_a_grid_of_such_a_model_leaves_no_folder(recipes, tmp_path):
    recipes(bad="os._exit(7)")
    (tmp_path / "grid.toml").write_text(
        f'[model]\nsource = "{tmp_path}/bad.py:build"\n[grid]\nmethods = ["static"]\nsparsities = [0.5]\nseeds = [0]\n'
    )
    with pytest.raises(RecipeError, match=r"dense seed 0; static 0\.5 seed 0: its rehearsal ended with 7"):
        run_grid(parse_grid(tmp_path / "grid.toml"), tmp_path / "out", cores=1)
    assert not (tmp_path / "out").exists()
