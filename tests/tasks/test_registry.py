"""Tasks by name, and the one that fits data and outputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from sparsify.errors import TaskError
from sparsify.tasks import TASKS, Custom, Regression, build, headline, infer, register

FLOATS = torch.tensor([0.5, 1.5, 2.5])


@pytest.mark.parametrize(
    ("target", "shape", "name"),
    [
        (torch.tensor([0, 2, 1]), ("N", 3), "classification"),
        (torch.tensor([0, 1, 1]), ("N", 2), "classification"),
        (torch.tensor([0, 1, 1]), ("N",), "binary"),
        (torch.tensor([False, True]), ("N", 1), "binary"),
        (torch.tensor([[1, 1, 0], [0, 0, 0]]), ("N", 3), "multilabel"),
        (FLOATS, ("N",), "regression"),
        (FLOATS, ("N", 1), "regression"),
        (torch.rand(3, 28, 28), ("N", 28, 28), "regression"),
        (torch.zeros(3, 8, 8).long(), ("N", 2, 8, 8), "dense"),
        (torch.full((3, 8), 3), ("N", 8, 5), "sequence"),
        (torch.full((3, 8), 3), ("N", 5, 8), "dense"),
    ],
)
def test_the_one_task_that_fits(target, shape, name):
    assert infer(target, shape).name == name


@pytest.mark.parametrize(
    ("target", "shape", "words"),
    [
        (torch.tensor([0.0, 1.0]), ("N", 1), "'binary' and 'regression' both fit"),
        (torch.zeros(3, 8).long(), ("N", 8, 8), "'dense' and 'sequence' both fit"),
        (torch.tensor([3, 70]), ("N", 1), "'regression' would be possible"),
        (torch.eye(3).long(), ("N", 3), "one-hot.*"),
        (torch.arange(9), ("N", 3), "classification: the targets go from 0 to 8 for 3 classes"),
        ({"a": FLOATS}, ("N",), "no task clearly fits targets dict"),
    ],
)
def test_what_is_not_clear_is_not_guessed(target, shape, words):
    with pytest.raises(TaskError, match=words) as error:
        infer(target, shape)
    assert "--task" in str(error.value)


def test_names_and_options():
    assert build("regression", {"criterion": "huber"}) == Regression(criterion="huber")
    assert str(build("regression", {"criterion": "huber", "delta": 2.0})) == "regression{criterion=huber, delta=2.0}"
    task = Regression()
    assert build(task) is task
    for name, words in (("regresion", "Nearest: regression"), ("x", "All: classification")):
        with pytest.raises(TaskError, match=words):
            build(name)
    with pytest.raises(TaskError, match=r"no option 'delt'\. It has criterion, delta"):
        build("regression", {"delt": 1})


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("regression", {"delta": "abc"}, "delta should be a number, found 'abc'"),
        ("regression", {"delta": True}, "delta should be a number, found True"),
        ("regression", {"deviations": 3}, "deviations should be a list of numbers, found 3"),
        ("regression", {"deviations": "1,2"}, "deviations should be a list of numbers, found '1,2'"),
        ("regression", {"deviations": [1.0, "a"]}, "deviations should be a list of numbers, found"),
        ("regression", {"criterion": 3}, "criterion should be a text or a function, found 3"),
        ("regression", {"scale": 3}, "scale should be a text, found 3"),
        ("dense", {"ignore": "foo"}, "ignore should be a whole number, found 'foo'"),
        ("dense", {"ignore": True}, "ignore should be a whole number, found True"),
        ("sequence", {"ignore": 1.5}, "ignore should be a whole number, found 1.5"),
        ("custom", {"criterion": torch.sub, "lower_is_better": 3}, "lower_is_better should be a text, found 3"),
        ("custom", {"criterion": torch.sub, "measure": "r2"}, "figures of task 'custom' should be a function"),
    ],
)
def test_options_of_another_type_are_refused_by_name_and_in_python(name, options, words):
    with pytest.raises(TaskError, match=re.escape(words)):
        build(name, options)
    with pytest.raises(TaskError, match=re.escape(words)):
        TASKS[name](**options)


def test_whole_numbers_are_numbers_and_a_list_is_kept_as_a_tuple():
    assert build("regression", {"criterion": "huber", "delta": 2}).delta == 2
    assert hash(build("regression", {"deviations": [1.0, 2.0]})) == hash(Regression(deviations=(1.0, 2.0)))


def test_a_task_of_another_package_is_built_and_inferred():
    @dataclass(frozen=True)
    class Ordinal(Regression):
        name: ClassVar = "ordinal"

        def suits(self, target, shape):
            return target.dtype is torch.int16

    with TASKS.forgetting():
        assert register(Ordinal) is Ordinal
        assert register(Ordinal) is Ordinal
        assert build("ordinal") == Ordinal()
        assert infer(torch.zeros(3, dtype=torch.int16) + 5, ("N",)) == Ordinal()
        with pytest.raises(TaskError, match="task 'ordinal': delta should be a number, found None"):
            build("ordinal", {"delta": None})
        with pytest.raises(TaskError, match="the task name 'regression' is taken"):
            register(type("Regression", (Ordinal,), {"name": "regression"}))


def test_custom_reads_functions_of_the_user():
    def loss(output, target):
        return (output["a"] - target).abs().mean()

    def figures(output, target):
        return {"bias": (output["a"] - target).mean(), "error": 2}

    task, output = Custom(criterion=loss, measure=figures, lower_is_better="error, bias"), {"a": FLOATS}
    assert task.loss(output, FLOATS - 1).item() == 1.0
    found = task.figures(output, FLOATS - 1)
    assert found == {"bias": 1.0, "error": 2.0}
    assert headline(found) == "bias"
    assert not task.higher_is_better("error")
    assert str(task) == "custom{criterion=loss, measure=figures, lower_is_better=error, bias}"
    assert Custom(criterion=loss).figures(output, FLOATS - 1) == {"loss": 1.0}
    assert not Custom(criterion=loss).higher_is_better("loss")
