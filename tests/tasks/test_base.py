"""What tasks have in common."""

from __future__ import annotations

import pytest
import torch

from sparsify.errors import TrainingError
from sparsify.tasks import TASKS, headline
from sparsify.tasks.base import fits


def test_every_task_says_what_it_reads():
    for name, task in TASKS.items():
        assert task.name == name
        assert task.targets
        assert isinstance(task.heads, tuple)
    assert {name: task.output for name, task in TASKS.items() if task.output != "logits"} == {
        "regression": "prediction",
        "custom": None,
    }


def test_the_first_figure_is_the_headline():
    assert headline({"b": 1.0, "a": 2.0}) == "b"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [((2, 3), (2, 3), True), ((2, 3), ("N", 3), True), ((2, 3), ("N", 4), False), ((2,), ("N", 1), False)],
)
def test_sizes_that_vary_fit_any(first, second, same):
    assert fits(first, second) is same


@pytest.mark.parametrize("name", [name for name in TASKS if name != "custom"])
def test_what_is_no_tensor_is_refused_by_name(name):
    with pytest.raises(TrainingError, match=f"task '{name}' takes .* and target list"):
        TASKS[name]().loss(torch.zeros(2, 3, 4), [0, 1])
