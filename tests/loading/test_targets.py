"""Targets of every task: kept as they are where they are numbers, refused with the place where they are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsify.errors import DataError
from sparsify.loading.targets import checked_targets, count_classes, sample_classes


@pytest.mark.parametrize(
    ("values", "kind", "shape"),
    [
        (np.array([1.5, 2.0]), torch.float32, [2]),
        (np.array([[1.5, 2.0, 3.0]]), torch.float32, [1, 3]),
        (np.array([[0, 1], [1, 1]], np.uint8), torch.int64, [2, 2]),
        (np.array([True, False]), torch.bool, [2]),
        (np.full((2, 4, 4), -100, np.int16), torch.int64, [2, 4, 4]),
    ],
)
def test_numbers_are_kept_for_any_task(values, kind, shape):
    found = checked_targets(values, "y")
    assert (found.dtype, list(found.shape)) == (kind, shape)
    np.testing.assert_array_equal(found.numpy(), values)


def test_targets_of_several_names():
    found = checked_targets({"box": np.ones((2, 4)), "kind": np.array([1, 0])}, "y_train")
    assert found["box"].dtype is torch.float32 and found["kind"].tolist() == [1, 0]
    with pytest.raises(DataError, match=r"y_train\.box holds NaN or infinity, first at sample 1, position \[3\]"):
        checked_targets({"box": np.array([[1.0] * 4, [1.0, 2.0, 3.0, np.nan]])}, "y_train")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array(3.0), r"y should hold one target per sample, \[N, \.\.\.\], found a single value"),
        (np.array(["cat", "dog"]), "y holds <U3; targets are numbers. Number the classes from 0"),
        (np.array([1j]), "y holds complex128; targets are numbers. Convert"),
        (np.array(["2020-01-01"], "datetime64[D]"), "Convert them to numbers"),
        (np.array([0.0, np.inf]), "NaN or infinity, first at sample 1. Leave"),
        (np.array([0.0, 1e300]), "beyond float32 .*first at sample 1"),
        (np.array([1, 2**63], np.uint64), "beyond int64, first at sample 1"),
    ],
)
def test_what_no_task_takes_is_refused(values, message):
    with pytest.raises(DataError, match=message):
        checked_targets(values, "y")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0, 1.5]]), r"found shape \[1, 2\]\. These look like the targets of a regression: set the task"),
        (np.array([[1, 1, 0]]), "set the task to 'multilabel'"),
        (np.array([[1, 3, 0]]), r"set the task to 'dense' \(logits \[N, K, \.\.\.\]\) or 'sequence'"),
    ],
)
def test_other_tasks_are_named_where_classification_is_asked_for(values, message):
    with pytest.raises(DataError, match=message):
        checked_targets(values, "y", task="classification")


def test_what_counts_as_one_class_per_sample():
    whole, reals = torch.tensor([0, 2, 1]), torch.tensor([0.5, 1.0])
    assert sample_classes(whole) is not None and count_classes(whole) == 3
    for task in ("regression", "multilabel", "custom"):
        assert sample_classes(whole, task) is None and count_classes(whole, task) == 0
    assert sample_classes(reals) is None and sample_classes(torch.tensor([-1, 2])) is None
    assert sample_classes({"a": whole}) is None and sample_classes(torch.zeros(2, 3).long()) is None
    for yes in (torch.tensor([True, False]), torch.tensor([1.0, 0.0]), torch.tensor([[1.0], [0.0]])):
        found = sample_classes(yes, "binary")
        assert found is not None and found.tolist() == [1, 0]
    maps = torch.tensor([[[0, 4], [-100, 2]]])
    assert count_classes(maps, "dense") == 5 and count_classes(maps) == 0
