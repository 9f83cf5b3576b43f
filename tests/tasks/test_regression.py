"""Regression, by hand and against torch and scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch.nn import functional

from sparsify.errors import DataError, TaskError, TrainingError
from sparsify.tasks import Binary, Classification, Regression

OUTPUT = torch.tensor([1.0, 2.0, 5.0])
TARGET = torch.tensor([1.0, 3.0, 2.0])


def test_losses_by_hand():
    assert Regression().loss(OUTPUT, TARGET).item() == pytest.approx(10 / 3)
    assert Regression(criterion="mae").loss(OUTPUT, TARGET).item() == pytest.approx(4 / 3)
    huber = Regression(criterion="huber", delta=2.0).loss(OUTPUT, TARGET)
    assert huber.item() == pytest.approx((0 + 0.5 + 2 * (3 - 1)) / 3)
    assert torch.equal(huber, functional.huber_loss(OUTPUT, TARGET, delta=2.0))


def test_figures_by_hand():
    found = Regression().figures(OUTPUT, TARGET)
    assert [*found] == ["r2", "rmse", "mae"]
    assert found["r2"] == pytest.approx(1 - 10 / 2)
    assert found["rmse"] == pytest.approx((10 / 3) ** 0.5)
    assert found["mae"] == pytest.approx(4 / 3)
    assert Regression().higher_is_better("r2")
    assert not Regression().higher_is_better("rmse")


@pytest.mark.parametrize("shape", [(30,), (30, 1), (30, 4)])
def test_figures_are_those_of_scikit_learn(shape):
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    found = Regression().figures(output, target)
    assert found["r2"] == pytest.approx(r2_score(target, output, multioutput="variance_weighted"), rel=1e-5)
    assert found["rmse"] == pytest.approx(root_mean_squared_error(target.flatten(), output.flatten()), rel=1e-5)
    assert found["mae"] == pytest.approx(mean_absolute_error(target, output), rel=1e-5)


def test_constant_targets_have_no_variance_to_explain():
    assert Regression().figures(torch.ones(3), torch.ones(3))["r2"] == 1.0
    assert Regression().figures(torch.zeros(3), torch.ones(3))["r2"] == 0.0


@pytest.mark.parametrize("swap", [False, True])
def test_a_column_and_a_row_are_never_broadcast(swap):
    output, target = (OUTPUT, TARGET[:, None]) if swap else (OUTPUT[:, None], TARGET)
    assert Regression().loss(output, target).item() == pytest.approx(10 / 3)
    assert Regression().figures(output, target) == Regression().figures(OUTPUT, TARGET)


def test_targets_of_other_types_become_the_outputs():
    assert Regression().loss(OUTPUT, TARGET.long()).item() == pytest.approx(10 / 3)
    assert Regression().loss(OUTPUT, TARGET.double()).dtype is torch.float32


def test_it_decides_nothing():
    assert Regression().decisions(OUTPUT) is None
    assert Regression().right(OUTPUT, TARGET) is None


@pytest.mark.parametrize("target", [torch.zeros(4), torch.zeros(3, 2), torch.zeros(3, 1, 1)])
def test_a_loss_refuses_other_shapes(target):
    with pytest.raises(TrainingError, match="task 'regression'"):
        Regression().loss(OUTPUT, target)


def test_labels_are_not_smoothed():
    with pytest.raises(TrainingError, match="no labels to smooth"):
        Regression().loss(OUTPUT, TARGET, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("target", "shape", "words"),
    [
        (torch.zeros(3, 2), ("N", 1), r"\[3, 2\] for an output"),
        (torch.zeros(3, 28, 28), ("N", 1, 28, 28), r"\[3, 28, 28\] for an output"),
        (torch.tensor([1.0, float("nan")]), ("N",), "1 of 2 targets are NaN"),
        (torch.zeros(3, dtype=torch.complex64), ("N",), "complex64"),
    ],
)
def test_targets_that_do_not_fit_are_refused_by_name(target, shape, words):
    with pytest.raises(DataError, match=f"task 'regression' .*{words}"):
        Regression().check(target, shape)


@pytest.mark.parametrize("options", [{"criterion": "mean"}, {"delta": 0.0}])
def test_options_are_checked(options):
    with pytest.raises(TaskError, match="task 'regression'"):
        Regression(**options)


def test_errors_are_divided_by_the_deviations_before_the_loss():
    output, target = torch.tensor([[10.0, 1.0], [30.0, 1.0]]), torch.tensor([[20.0, 1.5], [30.0, 0.5]])
    task = Regression(deviations=(10.0, 0.5))
    assert task.loss(output, target).item() == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert Regression("huber", delta=0.5, deviations=(10.0, 0.5)).loss(output, target).item() == pytest.approx(
        3 * 0.5 * (1 - 0.25) / 4
    )
    assert task.figures(output, target) == Regression().figures(output, target)
    column = Regression(deviations=(10.0,))
    assert column.loss(output[:, :1], target[:, 0]).item() == pytest.approx(0.5)


def test_moments_by_hand():
    target = torch.tensor([[1.0, 7.0], [3.0, 7.0]])
    mean, deviation = Regression().moments(target, ("N", 2))
    assert mean.tolist() == [2.0, 7.0] and deviation.tolist() == [1.0, 0.0]
    mean, deviation = Regression().moments(torch.tensor([1, 3]), ("N", 1))
    assert mean.tolist() == [2.0] and deviation.tolist() == [1.0]
    mean, deviation = Regression().moments(target[:, :, None], ("N", 2, 1))
    assert mean.tolist() == [4.5] and len(deviation) == 1


def test_what_is_worse_than_one_answer_for_all_is_said():
    assert Regression().shortfall({"r2": 0.0}) == Regression().shortfall({"r2": float("nan")}) == ""
    assert Regression().shortfall({"r2": -2.0}) == "r2 is -2, but a constant answer reaches 0"
    assert Binary().shortfall({"auroc": 0.4}) and not Binary().shortfall({"auroc": 0.6})
    assert not Classification().shortfall({"accuracy": 0.0})


@pytest.mark.parametrize("options", [{"scale": "minmax"}, {"deviations": (0.0,)}, {"deviations": (float("nan"),)}])
def test_scales_are_checked(options):
    with pytest.raises(TaskError, match="of task 'regression'"):
        Regression(**options)


def test_a_loss_of_the_users_own_reads_all_outputs():
    task = Regression(criterion=lambda output, target: output["prediction"].mean() + output["more"].mean())
    assert task.trained_on is None and task.output == "prediction" and Regression().trained_on == "prediction"
    assert task.loss({"prediction": OUTPUT, "more": OUTPUT}, TARGET).item() == pytest.approx(2 * OUTPUT.mean().item())
    assert str(task) == "regression{criterion=<lambda>}"
    with pytest.raises(TrainingError, match=r"should return one number.*Take the mean"):
        Regression(criterion=lambda output, target: output).loss(OUTPUT, TARGET)


def test_a_teacher_is_imitated_in_deviations():
    output, teacher = torch.tensor([[3.0, 40.0]]), torch.tensor([[1.0, 20.0]])
    assert float(Regression().imitation(output, teacher)) == (4 + 400) / 2
    assert float(Regression(criterion="mae", deviations=(1.0, 10.0)).imitation(output, teacher)) == (4 + 4) / 2
