"""A saved program is read as its own file says; where that says nothing, data and outputs do, or the user is asked."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import nn

import sparsify as sp
from sparsify.errors import RecipeError, TaskError
from sparsify.passes.scale_prediction import set_scale
from sparsify.runs.exporting import export_saved


@pytest.fixture
def diabetes(tmp_path):
    """The data as an archive, and a saved model of one output."""
    found = load_diabetes()
    x, y = (20 * found.data).astype("float32"), found.target.astype("float32")
    np.savez(tmp_path / "d.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    np.savez(tmp_path / "yes.npz", x_train=x[:300], y_train=y[:300] > 140, x_test=x[300:], y_test=y[300:] > 140)
    torch.manual_seed(0)
    return tmp_path


def saved(folder, task, **options):
    program = sp.trace(
        nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1)), (torch.rand(2, 10),), task=task, **options
    )
    program.save(folder / "p.sparsify")
    return folder / "p.sparsify"


def metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_the_task_of_the_program_needs_no_recipe(diabetes):
    result, _ = export_saved(saved(diabetes, "regression"), diabetes / "m.onnx", data=str(diabetes / "d.npz"))
    assert metadata(diabetes / "m.onnx")["task"] == "regression" and result.parity.decisions == 0
    result, _ = export_saved(saved(diabetes, "binary"), diabetes / "b.onnx", data=str(diabetes / "yes.npz"))
    assert metadata(diabetes / "b.onnx")["task"] == "binary"


def test_the_file_has_the_scale_of_the_prediction(diabetes):
    program = sp.Program.load(saved(diabetes, "regression"))
    scaled = sp.Pipeline.parse("scale-prediction")(program)
    set_scale(scaled, torch.tensor([152.0]), torch.tensor([76.5]))
    scaled.save(diabetes / "s.sparsify")
    export_saved(diabetes / "s.sparsify", diabetes / "m.onnx", data=str(diabetes / "d.npz"))
    assert json.loads(metadata(diabetes / "m.onnx")["prediction_scale"]) == {"mean": [152.0], "deviation": [76.5]}


def test_a_program_that_says_nothing_is_read_as_the_one_task_that_fits(diabetes):
    export_saved(saved(diabetes, None), diabetes / "b.onnx", data=str(diabetes / "yes.npz"))
    assert metadata(diabetes / "b.onnx")["task"] == "binary"
    with pytest.raises(TaskError, match="reads the output 'prediction', and 'sequential' returns logits"):
        export_saved(saved(diabetes, None), diabetes / "m.onnx", data=str(diabetes / "d.npz"))
    np.savez(
        diabetes / "many.npz",
        **{k: (v // 50).astype("int64") if k[0] == "y" else v for k, v in np.load(diabetes / "d.npz").items()},
    )
    with pytest.raises(TaskError, match=r"no task clearly fits .*'regression' would be possible.*--task regression"):
        export_saved(saved(diabetes, None), diabetes / "m.onnx", data=str(diabetes / "many.npz"))
    export_saved(saved(diabetes, "regression"), diabetes / "m.onnx", data=str(diabetes / "many.npz"))


def test_what_is_asked_for_is_checked(diabetes):
    program, data = saved(diabetes, "regression"), str(diabetes / "d.npz")
    with pytest.raises(TaskError, match="task 'binary' reads the output 'logits'"):
        export_saved(program, diabetes / "m.onnx", data=data, task="binary")
    recipe = diabetes / "r.toml"
    recipe.write_text(f'[task]\nkind = "binary"\n[data]\nsource = "{diabetes / "yes.npz"}"\n')
    with pytest.raises(RecipeError, match="for the task 'binary', and program 'sequential' was made for 'regression'"):
        export_saved(program, diabetes / "m.onnx", recipe=recipe)
    with pytest.raises(RecipeError, match="leave out --data, --image-size and --task"):
        export_saved(program, diabetes / "m.onnx", recipe=recipe, task="binary")
    assert not (diabetes / "m.onnx").exists()
