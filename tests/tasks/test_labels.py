"""Binary and multilabel tasks, by hand and against torch and scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits

from sparsify.errors import DataError, TrainingError
from sparsify.tasks import Binary, Multilabel

Z = torch.tensor([-1.0, 0.5, 2.0, -0.2, 0.1, 0.0])
Y = torch.tensor([0, 1, 1, 1, 0, 0])


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float64])
def test_one_logit_in_either_shape_and_any_type(shape, kind):
    task, output, target = Binary(), Z.reshape(shape), Y.to(kind)
    assert task.loss(output, target).item() == pytest.approx(binary_cross_entropy_with_logits(Z, Y.float()).item())
    assert task.loss(Z, target[:, None]).item() == task.loss(Z, target).item()
    assert task.figures(output, target) == task.figures(Z, Y)


def test_binary_figures_by_hand_and_by_scikit_learn():
    found = Binary().figures(Z, Y)
    assert [*found] == ["auroc", "accuracy", "nll", "ece", "average_precision"]
    assert found["auroc"] == pytest.approx(7 / 9)  # of 9 pairs, -0.2 lies below 0.1 and 0.0
    assert found["accuracy"] == pytest.approx(4 / 6)  # 0.0 is no, -0.2 and 0.1 are wrong
    assert found["auroc"] == pytest.approx(roc_auc_score(Y, Z))
    assert found["average_precision"] == pytest.approx(average_precision_score(Y, Z))
    assert found["nll"] == pytest.approx(log_loss(Y, Z.double().sigmoid()))


def test_one_class_has_no_auroc():
    found = Binary().figures(Z, torch.ones(6))
    assert math.isnan(found["auroc"])
    assert found["accuracy"] == pytest.approx(3 / 6)


def test_smoothing_moves_targets_towards_a_half():
    smoothed = Y * 0.8 + 0.1
    expected = binary_cross_entropy_with_logits(Z, smoothed)
    assert Binary().loss(Z, Y, label_smoothing=0.2).item() == pytest.approx(expected.item())


def test_multilabel_figures_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    z, y = torch.randn(40, 5, generator=generator), torch.randint(2, (40, 5), generator=generator)
    found = Multilabel().figures(z, y)
    assert [*found][:2] == ["mean_average_precision", "accuracy"]
    assert found["mean_average_precision"] == pytest.approx(average_precision_score(y, z, average="macro"))
    assert found["accuracy"] == pytest.approx(accuracy_score(y.flatten(), (z > 0).flatten()))
    assert found["nll"] == pytest.approx(binary_cross_entropy_with_logits(z.double(), y.double()).item())


def test_a_label_that_no_sample_has_is_left_out_of_the_mean():
    z = torch.tensor([[1.0, 3.0], [2.0, -1.0], [3.0, 0.0]])
    y = torch.tensor([[1, 0], [0, 0], [1, 0]])
    expected = average_precision_score(y[:, 0], z[:, 0])
    assert Multilabel().figures(z, y)["mean_average_precision"] == pytest.approx(expected)
    assert math.isnan(Multilabel().figures(z, torch.zeros(3, 2))["mean_average_precision"])


def test_decisions_are_signs():
    binary, several = (
        Binary().decisions(Z[:, None]),
        Multilabel().decisions(torch.tensor([[1.0, -1.0], [-2.0, 3.0]])),
    )
    assert binary is not None and several is not None
    assert binary.tolist() == [0, 1, 1, 0, 1, 0]
    assert several.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("task", "target", "shape", "words"),
    [
        (Binary(), torch.tensor([0, 1, 2]), ("N",), "1 of 3 targets are neither 0 nor 1, such as 2"),
        (Binary(), torch.tensor([0.0, 0.5]), ("N", 1), "such as 0.5"),
        (Binary(), torch.zeros(3), ("N", 2), "the output has shape"),
        (Binary(), torch.zeros(3, 2), ("N", 1), r"float32 \[3, 2\]"),
        (Multilabel(), torch.zeros(3, 4), ("N", 5), r"\[3, 4\] for an output"),
        (Multilabel(), torch.zeros(3), ("N", 5), r"\[3\] for an output"),
        (Multilabel(), torch.full((3, 5), -1), ("N", 5), "15 of 15"),
        (Multilabel(), torch.zeros(3, 1), ("N", 1), "the output has shape"),
    ],
)
def test_targets_that_do_not_fit_are_refused_by_name(task, target, shape, words):
    with pytest.raises(DataError, match=words) as error:
        task.check(target, shape)
    assert f"task {task.name!r}" in str(error.value)


@pytest.mark.parametrize(("task", "output"), [(Binary(), torch.zeros(6, 2)), (Multilabel(), torch.zeros(6, 2))])
def test_a_loss_refuses_what_its_task_does_not_read(task, output):
    with pytest.raises(TrainingError, match=f"task '{task.name}'"):
        task.loss(output, Y)
