"""A task as plain data and back; what is no data, or comes from a stranger, is refused or left out."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch

from sparsify.errors import TaskError
from sparsify.tasks import TASKS, Binary, Classification, Custom, Dense, Multilabel, Regression, Sequence, register
from sparsify.tasks.stored import as_task, from_data, measurable, to_data


@pytest.mark.parametrize(
    "task",
    [
        Classification(), Binary(), Multilabel(), Dense(ignore=255), Sequence(),
        Regression(criterion="huber", delta=2.5, scale="none", deviations=(77.1, 0.5)),
    ],
    ids=str,
)  # fmt: skip
def test_there_and_back(task):
    data = to_data(task)
    assert data is not None and data["kind"] == task.name
    assert from_data(data["kind"], data["options"]) == task


def test_only_options_that_differ_are_held():
    assert to_data(Regression(delta=2.0)) == {"kind": "regression", "options": {"delta": 2.0}}


def test_functions_are_left_out_and_asked_for_when_they_are_needed():
    data = to_data(Custom(criterion=lambda output, target: output.sum(), lower_is_better="worst"))
    assert data == {"kind": "custom", "options": {"lower_is_better": "worst"}}
    found = from_data("custom", data["options"])
    assert isinstance(found, Custom) and not found.higher_is_better("worst") and not measurable(found)
    with pytest.raises(TaskError, match=r"is a function of your own, which files do not store.*--recipe"):
        found.loss(torch.zeros(2), torch.zeros(2))
    assert measurable(Binary()) and not measurable(None)


def test_a_regression_with_a_loss_of_your_own_stays_a_regression_that_lacks_its_loss():
    task = Regression(criterion=lambda output, target: output.sum(), scale="none")
    data = to_data(task)
    assert data == {"kind": "regression", "options": {"criterion": "absent", "scale": "none"}}
    found = from_data(data["kind"], data["options"])
    assert to_data(found) == data and measurable(found) and found.trained_on is None
    assert found.figures(torch.ones(2), torch.tensor([1.0, 2.0]))["mae"] == 0.5
    with pytest.raises(TaskError, match=r"which files do not store.*criterion="):
        found.loss(torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("regresion", {}),
        ("regression", {"criterion": 3}),
        ("regression", {"delta": "2"}),
        ("regression", {"delta": True}),
        ("regression", {"delta": -1.0}),
        ("regression", {"delta": float("inf")}),
        ("regression", {"deviations": [1.0, "x"]}),
        ("regression", {"deviations": 3.0}),
        ("regression", {"loss": "mse"}),
        ("regression", {"scale": "absent"}),
        ("dense", {"ignore": 1.5}),
        ("dense", {"name": "sequence"}),
        ("custom", {"criterion": "os:getcwd"}),
        ("custom", {"measure": "os:getcwd"}),
    ],
)
def test_what_a_stranger_may_not_say(kind, options):
    with pytest.raises(TaskError):
        from_data(kind, options)


def test_a_task_of_another_package_that_is_no_plain_data_is_not_stored():
    @dataclasses.dataclass(frozen=True)
    class Ranking(Classification):
        name: ClassVar = "ranking"
        weights: dict = dataclasses.field(default_factory=dict)

    assert to_data(Ranking()) is None  # nobody could read it
    with TASKS.forgetting():
        register(Ranking)
        assert to_data(Ranking({"a": 1.0})) is None
        assert as_task("ranking") is None or as_task("ranking") == Ranking()
    assert as_task("custom") == from_data("custom", {})
