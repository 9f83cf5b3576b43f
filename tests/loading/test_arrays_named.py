"""Archives of several inputs and of targets of any task, from real digits; what does not go together is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparsify.errors import DataError
from sparsify.loading import load_data
from tests.loading.test_data import IMAGES, LABELS, encoded

INK = IMAGES.reshape(len(IMAGES), -1).mean(1)


def write(path, **changes):
    arrays: dict[str, Any] = {}
    for part, rows in (("train", slice(0, 200)), ("test", slice(200, 260))):
        arrays |= {
            f"x_{part}.image": IMAGES[rows],
            f"x_{part}.ink": INK[rows, None].astype(np.float32),
            f"x_{part}.tokens": (IMAGES[rows, 0] // 32).astype(np.int32),
            f"x_{part}.seen": IMAGES[rows, 0] > 99,
            f"y_{part}": LABELS[rows],
        }
    np.savez(path, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
    return str(path)


def test_inputs_come_by_name_and_each_is_prepared_by_what_it_is(tmp_path):
    data = load_data(write(tmp_path / "d.npz"), seed=0)
    inputs, target = data.test.batch(torch.tensor([3, 1]))
    mean, std = (IMAGES[:200] / 255).mean(), (IMAGES[:200] / 255).std()
    np.testing.assert_allclose(inputs["image"][:, 0], (IMAGES[[203, 201]] / 255 - mean) / std, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(inputs["ink"], INK[[203, 201], None].astype(np.float32))
    assert inputs["tokens"].dtype is torch.int64 and inputs["seen"].dtype is torch.bool
    assert target.tolist() == LABELS[[203, 201]].tolist() and data.classes == 10
    assert list(data.example(2)) == ["image", "ink", "tokens", "seen"] and data.statistics is None
    assert data.preparation["inputs"]["image"] == {
        "scale": 255,
        "stored": "NHW",
        "mean": [pytest.approx(mean)],
        "std": [pytest.approx(std)],
    }
    assert data.preparation["inputs"]["tokens"] == {"scale": 1}


def test_one_input_with_a_name_stays_whole_numbers(tmp_path):
    arrays: dict[str, Any] = {f"x_{part}.ids": np.arange(60).reshape(20, 3) for part in ("train", "test")}
    np.savez(tmp_path / "d.npz", **arrays, y_train=np.arange(20) % 2, y_test=np.arange(20) % 2)
    inputs = load_data(str(tmp_path / "d.npz"), seed=0).test.batch(torch.tensor([1])).inputs
    assert inputs["ids"].tolist() == [[3, 4, 5]] and inputs["ids"].dtype is torch.int64


@pytest.mark.parametrize("name", ["tokens", "seen"])
def test_bytes_that_are_no_images_are_refused(tmp_path, name):
    kept = {
        f"x_{part}.{name}": IMAGES[rows, 0] // 64
        for part, rows in (("train", slice(0, 200)), ("test", slice(200, 260)))
    }
    with pytest.raises(
        DataError, match=rf"x_train: input '{name}' holds bytes \(uint8\) \[N, 8\].*int64, a mask as bool"
    ):
        load_data(write(tmp_path / "d.npz", **kept), seed=0)


def test_an_input_may_be_encoded_images(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSIFY_CACHE", "off")
    changes: dict[str, Any] = {"x_train.image": None, "x_test.image": None}
    for part, rows in (("train", slice(0, 200)), ("test", slice(200, 260))):
        changes[f"images_{part}.image"], changes[f"offsets_{part}.image"] = encoded(IMAGES[rows])
    with pytest.warns(UserWarning, match="all training images are grey"):
        data = load_data(write(tmp_path / "e.npz", **changes), seed=0)
    plain = load_data(write(tmp_path / "d.npz"), seed=0)
    rows = torch.arange(60)
    assert torch.equal(data.test.batch(rows).inputs["image"], plain.test.batch(rows).inputs["image"])


@pytest.mark.parametrize("channels", ["rgb", "grey"])
def test_channels_are_chosen_only_of_encoded_images(tmp_path, channels):
    with pytest.raises(DataError, match=r"d\.npz holds no encoded images, whose channels could be chosen"):
        load_data(write(tmp_path / "d.npz"), seed=0, channels=channels)
    with pytest.raises(DataError, match="digits: channels is for folders of images and for encoded images"):
        load_data("digits", seed=0, channels=channels)


def test_the_fingerprint_sees_every_input_and_its_name(tmp_path):
    changed = IMAGES[200:260, 0] > 99
    changed[7, 3] ^= True
    dye = {"x_train.ink": None, "x_test.ink": None, "x_train.dye": INK[:200, None], "x_test.dye": INK[200:260, None]}
    changes = ({}, {"x_test.seen": changed}, dye)
    texts = {load_data(write(tmp_path / "d.npz", **change), seed=0).fingerprint() for change in changes}
    assert len(texts) == 3


TARGETS = {
    "numbers": (lambda rows: INK[rows], torch.float32, ()),
    "several numbers": (lambda rows: np.stack([INK[rows], -INK[rows]], 1), torch.float32, (2,)),
    "labels": (lambda rows: (IMAGES[rows, 0] > 99).astype(np.uint8), torch.int64, (8,)),
    "positions": (lambda rows: np.where(IMAGES[rows] > 99, LABELS[rows, None, None], -100), torch.int64, (8, 8)),
    "tokens": (lambda rows: IMAGES[rows, 0].astype(np.int64) // 32, torch.int64, (8,)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_of_other_tasks_are_split_at_random_and_not_judged_as_classes(tmp_path, name):
    make, kind, shape = TARGETS[name]
    parts = {f"y_{part}": make(rows) for part, rows in (("train", slice(0, 200)), ("test", slice(200, 260)))}
    data = load_data(write(tmp_path / "d.npz", **parts), seed=0, holdout=0.2)
    assert (len(data.train), len(data.validation), data.classes) == (160, 40, 0)
    assert data.train.targets.dtype is kind and tuple(data.train.targets.shape[1:]) == shape
    assert torch.equal(data.test.batch(torch.tensor([5])).target, data.test.targets[[5]])
    other = load_data(write(tmp_path / "d.npz", **parts), seed=1, holdout=0.2)
    assert other.validation.fingerprint() != data.validation.fingerprint()


def test_whole_numbers_are_amounts_where_the_task_says_so(tmp_path):
    amounts = np.arange(200)
    path = write(tmp_path / "d.npz", y_train=amounts, y_test=np.arange(900, 960))
    with pytest.raises(
        DataError, match=r"never occurs in training.*amounts and no classes, set the task to 'regression'"
    ):
        load_data(path, seed=0)
    assert load_data(path, seed=0, task="regression", train_samples=100).classes == 0


def test_classes_of_yes_and_no_are_stratified(tmp_path):
    rare = (np.arange(200) % 20 == 0).astype(np.float32)
    data = load_data(write(tmp_path / "d.npz", y_train=rare, y_test=rare[:60]), seed=0, task="binary", holdout=0.2)
    assert data.classes == 2 and int(data.validation.targets.sum()) == 2 and data.train.targets.dtype is torch.float32


def test_targets_of_several_names(tmp_path):
    both = {f"y_{part}.{key}": value[rows] for part, rows in (("train", slice(0, 200)), ("test", slice(200, 260)))
            for key, value in (("ink", INK), ("digit", LABELS))}  # fmt: skip
    data = load_data(write(tmp_path / "d.npz", y_train=None, y_test=None, **both), seed=0)
    assert data.test.batch(torch.tensor([2])).target["digit"].tolist() == [LABELS[202]]
    assert data.validation.targets["ink"].dtype is torch.float32 and data.classes == 0


BAD = {
    "an input of one part": ({"x_test.ink": None}, "the training part has the inputs image, ink, tokens, seen, but the test part has"),
    "named and not": ({"x_train": IMAGES[:200]}, "contain both x_train and x_train.image. Give either a single array"),
    "no name": ({"x_train.my image": IMAGES[:200]}, "x_train.my image should end in the name of an argument of forward"),
    "samples": ({"x_train.ink": INK[:199, None]}, "x_train: the inputs have 199 and 200 samples"),
    "no targets": ({"y_train": None}, "lacks y_train"),
    "shapes": ({"x_test.ink": INK[200:260]}, "training inputs 'ink' have shape [1], test inputs 'ink' []"),
    "not finite": ({"x_train.ink": np.full((200, 1), np.nan)}, "x_train.ink[0, 0] is nan"),
    "targets of unlike shapes": ({"y_test": np.zeros((60, 2), int)}, "y_train has int64 [N], but y_test has int64 [N, 2]"),
    "targets of unlike kinds": ({"y_test": np.linspace(0, 1, 60)}, "y_train has int64 [N], but y_test has float32 [N]"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_go_together_is_refused(tmp_path, name):
    changes, message = BAD[name]
    with pytest.raises(DataError) as raised:
        load_data(write(tmp_path / "d.npz", **changes), seed=0)
    assert message in str(raised.value)


def test_given_statistics_are_for_one_input(tmp_path):
    with pytest.raises(DataError, match="several inputs, but mean and std apply to a single input"):
        load_data(write(tmp_path / "d.npz"), seed=0, mean=[0.5], std=[0.5])


@pytest.mark.parametrize(
    ("task", "names", "fine"),
    [
        ("multilabel", 8, True),
        ("multilabel", 7, False),
        ("sequence", 8, True),
        ("sequence", 9, True),
        ("sequence", 7, False),
    ],
)
def test_class_names_of_columns_and_of_positions(tmp_path, task, names, fine):
    labels = (IMAGES[:260, 0] // 32).clip(0, 1 if task == "multilabel" else 7).astype(np.int64)
    labels[0, 0] = labels.max() if task == "multilabel" else 7
    path = write(
        tmp_path / "d.npz",
        y_train=labels[:200],
        y_test=labels[200:],
        class_names=np.array([f"n{i}" for i in range(names)]),
    )
    if fine:
        assert load_data(path, seed=0, task=task).class_names is not None
    else:
        with pytest.raises(DataError, match=f"{names} class_names for 8"):
            load_data(path, seed=0, task=task)
