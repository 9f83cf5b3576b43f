"""What the functions of a custom task may return."""

from __future__ import annotations

import pytest
import torch

from sparsify.errors import TaskError, TrainingError
from sparsify.reports.measures import task_quality
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


def squared(output, target):
    return ((output - target) ** 2).mean()


def both(output, target):
    return {"mse": squared(output, target), "mean": output.mean()}


def test_of_a_figure_only_its_user_says_which_way_is_better():
    task = Custom(criterion=squared, measure=both, lower_is_better="mse", greater_is_better=" mean,")
    assert [task.higher_is_better(name) for name in ("mse", "mean", "loss")] == [False, True, False]
    assert task.figures(X, X + 1) == {"mse": 1.0, "mean": 1.5}
    assert Custom(criterion=squared, measure=both).higher_is_better("mse") is None
    row = task_quality(Custom(criterion=squared, measure=both, lower_is_better="mse"), X, {}, X + 1)
    assert (row["headline"], row["lower_is_better"], row["undirected"]) == ("mse", ["mse"], ["mean"])
    assert "undirected" not in task_quality(task, X, {}, X)


@pytest.mark.parametrize("way", ["lower_is_better", "greater_is_better"])
def test_ways_of_figures_that_there_are_not_are_refused(way):
    with pytest.raises(TaskError, match=f"{way} of task 'custom' names 'rmse', but its figures are 'mse', 'mean'"):
        Custom(criterion=squared, measure=both, **{way: "mean, rmse"}).figures(X, X)
    with pytest.raises(TaskError, match="names 'mse', but its figures are 'loss'"):
        Custom(criterion=squared, **{way: "mse"}).figures(X, X)
    for value in (True, 3, ["mse"], None):
        with pytest.raises(TaskError, match=f"task 'custom': {way} should be a text"):
            build("custom", {"criterion": squared, "measure": both, way: value})


@pytest.mark.parametrize("greater", ["mse", "loss"])
def test_a_figure_is_better_one_way(greater):
    with pytest.raises(
        TaskError, match=f"the figure '{greater}' of task 'custom' is declared better in both directions"
    ):
        Custom(criterion=squared, measure=both, lower_is_better="mse", greater_is_better=greater)
