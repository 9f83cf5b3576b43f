"""Classification, dense prediction and sequences, by hand and against torch and scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score, log_loss
from torch.nn.functional import cross_entropy

from sparsify.errors import DataError, TrainingError
from sparsify.parts.distillation import distillation_loss
from sparsify.tasks import Classification, Dense, Sequence


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def whole(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(1))


def test_classification_is_cross_entropy_to_the_bit():
    output, target = random(20, 4), whole(4, 20)
    assert torch.equal(Classification().loss(output, target), cross_entropy(output, target))
    assert torch.equal(
        Classification().loss(output, target, label_smoothing=0.1), cross_entropy(output, target, label_smoothing=0.1)
    )
    soft = output.flip(1).softmax(1)
    assert torch.equal(Classification().loss(output, soft), cross_entropy(output, soft))


def test_figures_of_three_samples_by_hand():
    output = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    found = Classification().figures(output, torch.tensor([0, 0, 0]))
    assert [*found] == ["accuracy", "nll", "ece"]
    assert found["accuracy"] == pytest.approx(2 / 3)  # a tie goes to the lower number
    losses = [math.log(1 + math.exp(-2)), math.log(2), math.log(1 + math.e)]
    assert found["nll"] == pytest.approx(sum(losses) / 3)


def test_figures_are_those_of_scikit_learn():
    output, target = random(50, 4), whole(4, 50)
    found = Classification().figures(output, target)
    assert found["accuracy"] == pytest.approx(accuracy_score(target, output.argmax(1)))
    assert found["nll"] == pytest.approx(log_loss(target, output.double().softmax(1)))


def test_samples_that_are_not_finite_are_wrong():
    output = torch.tensor([[3.0, 0.0], [float("nan"), 0.0], [float("inf"), 0.0], [0.0, 5.0]])
    found = Classification().figures(output, torch.tensor([0, 0, 0, 1]))
    assert found["accuracy"] == pytest.approx(0.5)
    assert math.isnan(found["nll"])
    assert Classification().right(output[::3], torch.tensor([0, 0])) == (1, 2)


def test_dense_reads_classes_at_dimension_1_and_leaves_out_what_is_ignored():
    output, target = random(3, 4, 5, 6), whole(4, 3, 5, 6)
    target[:, 0] = -100
    task = Dense()
    assert task.loss(output, target).item() == pytest.approx(cross_entropy(output, target).item(), rel=1e-6)
    judged = target >= 0
    found, chosen = task.figures(output, target), output.argmax(1)[judged]
    assert [*found][:2] == ["mean_iou", "accuracy"]
    assert found["mean_iou"] == pytest.approx(jaccard_score(target[judged], chosen, average="macro"))
    assert found["accuracy"] == pytest.approx(accuracy_score(target[judged], chosen))
    assert task.right(output, target) == (int((chosen == target[judged]).sum()), int(judged.sum()))


def test_mean_iou_by_hand():
    output = torch.tensor([[[5.0, 5, 0, 0], [0, 0, 5, 5], [0, 0, 0, 0]]])  # chooses 0 0 1 1
    found = Dense(ignore=255).figures(output, torch.tensor([[0, 1, 1, 255]]))
    assert found["mean_iou"] == pytest.approx((1 / 2 + 1 / 2) / 2)  # class 2 is nowhere and counts for nothing


def test_a_sequence_reads_classes_at_the_last_dimension():
    output, target = random(3, 7, 5), whole(5, 3, 7)
    target[0, 3:] = -1
    task = Sequence(ignore=-1)
    expected = cross_entropy(output.transpose(1, 2), target, ignore_index=-1)
    assert task.loss(output, target).item() == pytest.approx(expected.item(), rel=1e-6)
    found = task.figures(output, target)
    assert [*found][:2] == ["accuracy", "perplexity"]
    assert found["perplexity"] == pytest.approx(expected.double().exp().item(), rel=1e-5)
    judged = target >= 0
    assert found["accuracy"] == pytest.approx(accuracy_score(target[judged], output.argmax(-1)[judged]))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_smoothing_of_positions_is_that_of_torch(smoothing):
    output, target = random(3, 4, 5), whole(4, 3, 5)
    expected = cross_entropy(output, target, label_smoothing=smoothing)
    assert Dense().loss(output, target, label_smoothing=smoothing).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_batch_in_which_all_is_ignored_has_loss_0_and_no_figures():
    output = random(2, 3, 4).requires_grad_()
    loss = Dense().loss(output, torch.full((2, 4), -100))
    loss.backward()
    assert loss.item() == 0
    assert output.grad is not None
    assert not output.grad.any()
    assert all(map(math.isnan, Dense().figures(output, torch.full((2, 4), -100)).values()))


@pytest.mark.parametrize(
    ("task", "target", "shape", "words"),
    [
        (Classification(), torch.arange(3), ("N", 2), "from 0 to 2 for 2 classes"),
        (Classification(), torch.arange(1, 4), ("N", 3), "numbered from 1, subtract 1"),
        (Classification(), torch.tensor([-1, 0]), ("N", 2), "the lowest target is -1"),
        (Classification(), torch.ones(3), ("N", 2), r"float32 \[3\]"),
        (Classification(), torch.eye(3), ("N", 3), "one-hot"),
        (Classification(), torch.zeros(3, 2).long(), ("N", 3), r"int64 \[3, 2\]"),
        (Classification(), torch.zeros(3).long(), ("N", 3, 4), r"shape \['N', 3, 4\]"),
        (Classification(), torch.zeros(3).long(), ("N",), "the output has shape"),
        (Classification(), {"y": torch.zeros(3)}, ("N", 3), "dict"),
        (Dense(), torch.zeros(3, 4).long(), ("N", 2, 5), r"\[3, 4\] for an output"),
        (Dense(), torch.full((3, 5), 7), ("N", 2, 5), "without those ignored"),
        (Dense(), torch.full((3, 5), -100), ("N", 2, 5), "no target is judged"),
        (Dense(), torch.zeros(3).long(), ("N", 2), "the output has shape"),
        (Sequence(), torch.zeros(3, 4).long(), ("N", 5, 2), r"\[3, 4\] for an output"),
        (Sequence(), torch.zeros(3, 4), ("N", 4, 2), "float32"),
        (Sequence(), torch.full((3, 4), 2), ("N", "T", 2), "for 2 classes"),
    ],
)
def test_targets_that_do_not_fit_are_refused_by_name(task, target, shape, words):
    with pytest.raises(DataError, match=words) as error:
        task.check(target, shape)
    assert f"task {task.name!r}" in str(error.value)
    assert "--task" in str(error.value)


def test_targets_that_fit():
    Classification().check(torch.tensor([0, 2]), ("N", 4))
    Dense(ignore=255).check(torch.tensor([[0, 255]]), ("N", 2, "W"))
    Sequence().check(torch.zeros(2, 9, dtype=torch.int32), ("N", "T", 5))


@pytest.mark.parametrize(
    ("task", "output", "target"),
    [
        (Classification(), random(6), torch.rand(6)),  # what cross_entropy takes for one sample of six classes
        (Classification(), random(6, 3), torch.rand(6)),
        (Classification(), random(6, 3, 2), whole(3, 6, 2)),
        (Dense(), random(6, 3), whole(3, 6)),
        (Sequence(), random(6, 3, 4), whole(3, 6, 4)),
    ],
)
def test_a_loss_refuses_what_its_task_does_not_read(task, output, target):
    with pytest.raises(TrainingError, match=rf"task '{task.name}' takes .* found output .*task=\.\.\."):
        task.loss(output, target)


@pytest.mark.parametrize(("task", "axis"), [(Dense(ignore=9), 1), (Sequence(ignore=9), -1)])
def test_a_teacher_is_imitated_where_positions_are_judged(task, axis):
    generator = torch.Generator().manual_seed(0)
    output, teacher = (torch.randn(4, 5, 3, generator=generator).movedim(-1, axis) for _ in range(2))
    target = torch.zeros(4, 5, dtype=torch.long)
    rows = [value.movedim(axis, -1).reshape(-1, 3) for value in (output, teacher)]
    everything = task.imitation(output, teacher, target, temperature=2.0)
    assert torch.allclose(everything, distillation_loss(*rows, 2.0))
    assert torch.allclose(everything, task.imitation(output, teacher, temperature=2.0))
    target[:, 1:] = 9
    first = [value.movedim(axis, -1)[:, 0] for value in (output, teacher)]
    assert torch.allclose(task.imitation(output, teacher, target, temperature=2.0), distillation_loss(*first, 2.0))
    assert float(task.imitation(output, teacher, torch.full_like(target, 9))) == 0.0
