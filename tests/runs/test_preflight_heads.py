"""Which calibration head a run has: with ``auto`` that of the program, else the usual one of the task."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import kind_of
from sparsify.errors import TrainingError
from sparsify.heads import HEADS, Vector, register
from sparsify.passes import AttachCalibrationHead, Pipeline
from sparsify.runs.preflight import heads, with_head
from sparsify.runs.recipe import Recipe, parse_recipe


def traced(task="classification", kind=None):
    program = sp.trace(nn.Linear(4, 3), (torch.rand(2, 4),), task=task).eval()
    return program if kind is None else Pipeline((AttachCalibrationHead(kind=kind, task=task),))(program).eval()


def recipe(task="classification", **keys):
    return parse_recipe(None, {"task": task, **keys})


@pytest.mark.parametrize(
    ("task", "has", "asked", "kind"),
    [
        ("classification", None, None, "temperature"), ("classification", "temperature", None, "temperature"),
        ("classification", "vector", None, "vector"), ("classification", "vector", "auto", "vector"),
        ("classification", "vector", "temperature", "temperature"), ("classification", "temperature", "vector", "vector"),
        ("regression", None, None, "interval"), ("regression", "interval", None, "interval"),
        ("regression", None, "temperature", "interval"),  # as recipes of earlier versions have it
        ("multilabel", None, None, "label-temperature"), ("multilabel", "label-temperature", None, "label-temperature"),
    ],
)  # fmt: skip
def test_a_head_stays_where_the_recipe_names_none(task, has, asked, kind):
    program, given = traced(task, has), recipe(task, **({"calibrator": asked} if asked else {}))
    resolved = with_head(given, program)
    assert resolved.calibrator == kind and with_head(resolved, program) == resolved
    assert f'calibrator = "{kind}"' in resolved.to_toml()
    for one in (given, resolved):
        steps = heads(one, program)
        assert [(step.kind, step.replace) for step in steps] == ([] if has == kind else [(kind, has is not None)])
        assert kind_of(Pipeline(steps)(program) if steps else program) == kind


def test_a_head_of_another_task_gives_way_to_the_usual_one():
    program = traced("multilabel", "label-temperature")
    program.task = None
    assert with_head(recipe(), program).calibrator == "temperature"


def test_a_head_that_is_not_installed_is_kept_by_nobody_and_replaced_by_one_that_is_named():
    with HEADS.forgetting():
        register(type("Twin", (Vector,), {"name": "twin", "tasks": ("classification",)})())
        program = traced(kind="twin")
        assert with_head(recipe(), program).calibrator == "twin"
    with pytest.raises(
        TrainingError, match=r"'twin'.* no head of that name is installed.* name it: export\.calibrator"
    ):
        heads(recipe(), program)
    replaced = Pipeline(heads(recipe(calibrator="vector"), program))(program)
    assert kind_of(replaced) == "vector" and replaced.output_names("eval") == ("logits", "probabilities")


def test_a_task_without_heads_has_none(tmp_path):
    (tmp_path / "losses.py").write_text("def loss(output, target):\n    return ((output - target) ** 2).mean()\n")
    given = parse_recipe(None, {"task": "custom", "loss": f"{tmp_path}/losses.py:loss"})
    assert heads(given, traced()) == () and with_head(given, traced()) == given and given.calibrator == "auto"


def test_a_recipe_leaves_the_head_to_the_program():
    assert Recipe().calibrator == parse_recipe(None, {}).calibrator == "auto"
