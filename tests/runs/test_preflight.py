"""What a run checks of its model before it trains."""

from __future__ import annotations

import dataclasses

import pytest

import sparsify as sp
from sparsify.errors import DataError, RecipeError, TraceError, TrainingError
from sparsify.ir import TraceWarning
from sparsify.methods import dense
from sparsify.passes import Pipeline
from sparsify.runs.artefacts import measure_latency, recipe_data
from sparsify.runs.preflight import Job, jobs, traced, with_warmup, without_baseline
from sparsify.runs.recipe import Recipe, parse_recipe

MODELS = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, form, width=32):
        super().__init__()
        self.body, self.head, self.form = nn.Linear(64, width), nn.Linear(width, 10), form
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        h = torch.relu(self.body(x.flatten(1)))
        return self.form(self, x, h, self.head(h))

def count(model, x, h, y):
    model.calls.add_(1)
    return y * model.calls

def features(): return Model(lambda m, x, h, y: (h, y))
def alike(): return Model(lambda m, x, h, y: (h, y), 10)
def counting(): return Model(count)
def small(): return Model(lambda m, x, h, y: -y if x.shape[0] > 16 else y)
"""


def test_the_logits_are_chosen_by_the_data_or_the_recipe_and_limits_stop_a_run_early(tmp_path):
    (tmp_path / "models.py").write_text(MODELS)
    recipe = Recipe(data="digits")
    data = recipe_data(recipe, None)

    def made(name, **changes):
        return traced(dataclasses.replace(recipe, model=f"{tmp_path / 'models.py'}:{name}", **changes), data)

    with pytest.warns(TraceWarning, match="the only one with 10 columns"):
        assert made("features").output_names("eval") == ("output_0", "logits")
    with pytest.raises(TraceError, match=r"--set model\.logits=1"):
        made("alike")
    assert made("alike", logits=1).output_names("eval") == ("output_0", "logits")
    with pytest.warns(TraceWarning, match="'calls'"), pytest.raises(TraceError, match="a file keeps no state"):
        made("counting")
    with pytest.warns(TraceWarning, match="1 <= N <= 16"), pytest.raises(TraceError, match="batch_size is 64"):
        made("small")
    with (
        pytest.warns(TraceWarning, match="1 <= N <= 16"),
        pytest.raises(TraceError, match="a run evaluates and exports"),
    ):
        made("small", batch_size=8)


PICTURES = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
"""


def test_a_recipe_declares_what_varies(tmp_path):
    (tmp_path / "pictures.py").write_text(PICTURES)
    values = {"model": f"{tmp_path / 'pictures.py'}:build", "dynamic": ["input:2=H", "input:3=W", "H=4..16"]}
    recipe = parse_recipe(None, values)
    assert recipe == parse_recipe(None, values | {"dynamic": "input:2=H, input:3=W, H=4..16"})
    program = traced(recipe, recipe_data(recipe, None))
    assert program.input_specs[0].shape == ("N", 1, "H", "W")
    assert str(program.ranges["eval"]["H"].text("H")) == "4 <= H <= 16"
    with pytest.raises(TraceError, match="INPUT:PLACE=NAME"):
        traced(dataclasses.replace(recipe, dynamic=("H",)), recipe_data(recipe, None))


STEPS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 32), nn.Linear(32, 5)

    def forward(self, ids):
        return self.head(torch.relu(self.embedding(ids)))

def part(steps, targets):
    return [({"ids": torch.ones(steps, dtype=torch.int64)}, torch.ones(targets, dtype=torch.int64)) for _ in range(40)]

def fitting(): return part(12, 12), part(12, 12)
def shorter(): return part(12, 12), part(9, 9)
def unlike(): return part(12, 11), part(12, 11)
"""


def test_a_size_that_varies_fits_any_that_its_inputs_have(tmp_path):
    (tmp_path / "steps.py").write_text(STEPS)

    def made(data, **changes):
        recipe = Recipe(model=f"{tmp_path / 'steps.py'}:Net", task="sequence", data=f"{tmp_path / 'steps.py'}:{data}")
        recipe = dataclasses.replace(recipe, **changes)
        return traced(recipe, recipe_data(recipe, None))

    for data in ("fitting", "shorter"):
        assert made(data, dynamic=("ids:1=T",)).input_specs[0].shape == ("N", "T")
    with pytest.raises(DataError, match=r"targets are int64 \[40, 9\] for an output \['N', 12, 5\]"):
        made("shorter")
    with pytest.raises(TrainingError, match=r"output float32 \[2, 12, 5\] and target int64 \[2, 11\]"):
        made("unlike", dynamic=("ids:1=T",))


def test_a_run_that_can_have_no_baseline_says_why(tmp_path):
    recipe = Recipe(model="sparsify.loading:digits_cnn", threads=1, epochs=1, sparsity=0.5)
    program = traced(recipe, recipe_data(recipe))
    masked = Pipeline.parse("insert-masks{density=0.5}")(program)
    assert without_baseline(Job("model", recipe.build_method(), program)) == ""
    assert without_baseline(Job("model", dense(), program)) == "its method is dense itself"
    why = without_baseline(Job("model", recipe.build_method(), masked))
    masked.save(tmp_path / "masked.sparsify")
    with pytest.raises(RecipeError, match="has masks, and a dense baseline cannot start from it"):
        traced(dataclasses.replace(recipe, model=str(tmp_path / "masked.sparsify"), baseline=True), recipe_data(recipe))  # type: ignore[type-var]
    assert why == "it trains a saved program with masks on, from which no dense baseline can start"


def test_a_warm_up_ends_within_the_run():
    data = recipe_data(Recipe(data="digits"))
    steps = len(data.train) // 64

    def resolved(**changes):
        return with_warmup(Recipe(data="digits", **changes), data).warmup

    for warmup in (steps, steps + 2, "100%"):
        told = steps if warmup == "100%" else warmup
        with pytest.raises(TrainingError, match=rf"warmup is {told} steps, and the run has {steps}: .*below {steps}"):
            resolved(epochs=1, warmup=warmup)
    assert resolved(epochs=1, warmup=steps - 1) == resolved(epochs=2, warmup=steps - 1) == steps - 1
    # The default of 20 steps is a quarter of a shorter run, and none of a single step.
    assert [resolved(epochs=epochs) for epochs in (1, 5, 50)] == [round(steps / 4), 20, 20]
    assert resolved(epochs=1, batch_size=len(data.train)) == 0


def test_only_int8_needs_as_many_samples_as_a_call_has():
    keys = {
        "data": "digits",
        "model": "sparsify.loading:digits_cnn",
        "sparsity": 0.5,
        "train_samples": 200,
        "export_batch": 190,
    }
    data = recipe_data(Recipe(**keys))
    assert jobs(Recipe(**keys), data, converts=True).keys() == {"model"} and len(data.train) < 190
    with pytest.raises(RecipeError, match=rf"export\.batch is 190.*observes {len(data.train)}\."):
        jobs(Recipe(**keys, export_precision="int8"), data, converts=True)


def test_latency_at_a_batch_above_the_validation_samples_repeats_them(tmp_path):
    data = recipe_data(Recipe(data="digits"))
    program = traced(Recipe(data="digits", model="sparsify.loading:digits_cnn"), data)
    sp.export(program, tmp_path / "model.onnx", inputs=program.input_tensors(data.example(16)))
    batch = len(data.validation) + 5
    found = measure_latency(tmp_path, data, threads=1, batch=batch)
    assert found["batch"] == batch and found["verdict"] is None
