"""What the functions of a custom task may return."""

from __future__ import annotations

import pytest
import torch

from sparsify.errors import TaskError, TrainingError
from sparsify.tasks import Custom, build

X = torch.tensor([1.0, 2.0])


@pytest.mark.parametrize("value", [X, 1.0, torch.tensor(1), None])
def test_a_loss_is_one_number(value):
    with pytest.raises(TrainingError, match=r"task 'custom.*should return one number"):
        Custom(criterion=lambda output, target: value).loss(X, X)


@pytest.mark.parametrize("value", [{}, None, {"a": X}, {"a": "b"}, 1.0])
def test_figures_are_numbers_by_name(value):
    with pytest.raises(TrainingError, match="the figures of task 'custom"):
        Custom(criterion=lambda output, target: output.sum(), measure=lambda output, target: value).figures(X, X)


def test_without_functions_it_is_no_task():
    with pytest.raises(TaskError, match="needs a loss"):
        build("custom")
    with pytest.raises(TaskError, match="figures of task 'custom'"):
        Custom(criterion=lambda output, target: output.sum(), measure="r2")  # type: ignore[arg-type]


def test_labels_are_not_smoothed():
    with pytest.raises(TrainingError, match="no labels to smooth"):
        Custom(criterion=lambda output, target: output.sum()).loss(X, X, label_smoothing=0.1)
