"""Data of a factory in every nesting: arrays by name, rows as dictionaries, batches that a collate function pads."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, TensorDataset

from sparsify.errors import DataError
from sparsify.loading import load_data
from sparsify.loading.datasets import DatasetSamples, samples_of_part
from sparsify.loading.pairs import IGNORED
from sparsify.parts.samples import Subset
from tests.loading.test_data import IMAGES, LABELS

INK = IMAGES.reshape(len(IMAGES), -1).mean(1).astype(np.float32)[:, None]
SENTENCES = [[int(v) for v in IMAGES[i, 0] // 40 + 1][: 3 + i % 5] for i in range(30)]


def rows(labels="labels"):
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), labels: int(LABELS[i])} for i, ids in enumerate(SENTENCES)
    ]


def padded(items, labels="labels"):
    """As a tokenizer's collator pads, in a mapping of a type of its own."""
    ids = pad_sequence([torch.tensor(item["input_ids"]) for item in items], batch_first=True)
    mask = pad_sequence([torch.tensor(item["attention_mask"]) for item in items], batch_first=True)
    return UserDict(input_ids=ids, attention_mask=mask, labels=torch.tensor([item[labels] for item in items]))


def check_two(samples):
    inputs, target = samples.batch(torch.tensor([4, 1]))
    assert inputs["image"].shape == (2, 1, 8, 8) and float(inputs["image"].max()) <= 1
    np.testing.assert_array_equal(inputs["ink"], INK[[4, 1]])
    assert target.tolist() == samples.targets[[4, 1]].tolist() == LABELS[[4, 1]].tolist()


class Rows:
    """Rows by index, with columns, as a data set of the datasets library has them."""

    column_names = ("image", "ink", "label")

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"image": IMAGES[index, None], "ink": INK[index], "label": LABELS[index]}


class Sealed(Rows):
    """Rows that are never read, beside columns that are."""

    def __getitem__(self, index):
        return LABELS[:20].tolist() if index == "label" else pytest.fail("a row was read")


def test_targets_are_read_from_their_column_where_there_is_one():
    assert DatasetSamples(Sealed(), "mine", task="classification").targets.tolist() == LABELS[:20].tolist()


PARTS = {
    "a pair with a mapping": ({"image": IMAGES[:20], "ink": INK[:20]}, LABELS[:20]),
    "a nested mapping": {"x": {"image": IMAGES[:20], "ink": torch.tensor(INK[:20])}, "y": LABELS[:20]},
    "a flat mapping": {"image": IMAGES[:20], "ink": INK[:20], "target": torch.tensor(LABELS[:20])},
    "rows": [Rows()[i] for i in range(20)],
    "pairs of a mapping": [({"image": IMAGES[i, None], "ink": INK[i]}, LABELS[i]) for i in range(20)],
    "rows by index": Rows(),
    "a loader": DataLoader(Rows(), batch_size=3, shuffle=True),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", PARTS)
def test_inputs_by_name_in_every_nesting(name):
    check_two(samples_of_part(PARTS[name], "mine", task="classification"))


def test_an_only_input_of_a_mapping_has_a_place_and_no_name():
    for part in ({"x": IMAGES[:20], "y": LABELS[:20]}, {"inputs": IMAGES[:20], "labels": LABELS[:20]}):
        assert samples_of_part(part, "mine").batch(torch.tensor([2])).inputs.shape == (1, 1, 8, 8)


def test_inputs_by_position():
    arrays = samples_of_part(((IMAGES[:20], INK[:20]), LABELS[:20]), "mine").batch(torch.tensor([3])).inputs
    items = (
        DatasetSamples([((IMAGES[i, None], INK[i]), LABELS[i]) for i in range(20)], "mine")
        .batch(torch.tensor([3]))
        .inputs
    )
    assert isinstance(arrays, tuple) and isinstance(items, tuple)
    assert all(torch.equal(a, b) for a, b in zip(arrays, items, strict=True))


@pytest.mark.parametrize("labels", ["labels", "label", "target"])
def test_batches_are_padded_by_the_collate_function_of_the_loader(labels):
    loader = DataLoader(rows(labels), collate_fn=lambda items: padded(items, labels))  # type: ignore[arg-type]
    samples = samples_of_part(loader, "mine", task="classification")
    inputs, target = samples.batch(torch.tensor([0, 4]))
    assert list(inputs) == ["input_ids", "attention_mask"] and inputs["input_ids"].shape == (2, 7)
    assert inputs["input_ids"][0].tolist() == [*SENTENCES[0], 0, 0, 0, 0] and inputs["input_ids"].dtype is torch.int64
    assert target.tolist() == LABELS[[0, 4]].tolist()
    assert samples.batch(torch.tensor([0])).inputs["input_ids"].shape == (1, 3)
    other = [dict(row) for row in rows(labels)]
    other[29]["input_ids"] = [9] * len(other[29]["input_ids"])
    changed = samples_of_part(DataLoader(other, collate_fn=lambda items: padded(items, labels)), "mine")  # type: ignore[arg-type]
    assert changed.fingerprint() != samples.fingerprint() == samples_of_part(loader, "mine").fingerprint()


def test_truth_values_stay_so_among_several_inputs():
    masks = [{"ids": [1, 2], "keep": np.array([True, False]), "label": i % 2} for i in range(4)]
    assert samples_of_part(masks, "mine").batch(torch.tensor([0])).inputs["keep"].tolist() == [[True, False]]


def tagged(items):
    names = {"ids": 0, "labels": IGNORED}
    return {
        name: pad_sequence([torch.tensor(item[name]) for item in items], batch_first=True, padding_value=padding)
        for name, padding in names.items()
    }


def test_targets_of_unlike_lengths_are_padded_with_what_the_loss_leaves_out():
    items = [{"ids": ids, "labels": [v % 3 for v in ids]} for ids in SENTENCES]
    samples = samples_of_part(DataLoader(items, collate_fn=tagged), "mine", task="sequence")  # type: ignore[arg-type]
    assert samples.targets.shape == (30, 7) and samples.targets[0].tolist() == [*items[0]["labels"], *[IGNORED] * 4]
    target = samples.batch(torch.tensor([0, 1])).target
    assert target.shape == (2, 4) and target[0].tolist() == [*items[0]["labels"], IGNORED]
    some = Subset(Subset(samples, torch.arange(20)), torch.tensor([0, 1]))
    assert torch.equal(some.targets, target)
    changed = DatasetSamples(items, "mine", collate=lambda some: {**tagged(some), "labels": tagged(some)["labels"] * 0})
    with pytest.raises(
        DataError, match=r"targets of samples \[0, 1\] \.\.\. differ from those first read\. .*only padding with -100"
    ):
        changed.batch(torch.tensor([0, 1]))


def test_targets_may_be_made_by_the_collate_function():
    def shifted(items):
        text = torch.stack(items)
        return {"ids": text[:, :-1], "labels": text[:, 1:]}

    text = torch.arange(40).view(8, 5)
    samples = DatasetSamples(list(text), "mine", collate=shifted, task="sequence")
    assert samples.targets.tolist() == text[:, 1:].tolist()
    assert samples.batch(torch.tensor([3])).inputs["ids"].tolist() == [[15, 16, 17, 18]]


def test_targets_of_other_tasks():
    reals = samples_of_part(
        TensorDataset(torch.ones(6, 2), torch.linspace(0, 1, 6).double()), "mine", task="regression"
    )
    assert reals.batch(torch.tensor([5])).target.tolist() == [1.0] and reals.targets.dtype is torch.float32
    boxes: list[Any] = [(np.ones(2), {"box": np.full(4, i * 1.0), "kind": i}) for i in range(5)]
    named = samples_of_part(boxes, "mine", task="custom")
    target = named.batch(torch.tensor([3])).target
    assert (
        target["box"].tolist() == [[3.0] * 4] and target["kind"].tolist() == [3] == named.targets["kind"][[3]].tolist()
    )


BAD = {
    "no target": (
        [{"ids": [1], "mask": [1]}],
        "should hold inputs by the names of forward and one target, under labels, label",
    ),
    "two targets": (
        [{"ids": [1], "label": 1, "labels": 2}],
        "and one target, .*found a mapping with ids, label, labels",
    ),
    "only a target": ([{"label": 1}], "should hold inputs by the names"),
    "a mapping of one array": ({"x": IMAGES[:5]}, "and one target"),
    "numbers": ([1, 2, 3], "should be a pair of arrays"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_has_no_inputs_or_no_target_is_refused(name):
    part, message = BAD[name]
    with pytest.raises(DataError, match=message):
        samples_of_part(part, "mine")


def test_unlike_lengths_without_a_collate_function_and_text_among_the_inputs():
    with pytest.raises(
        DataError, match=r"input of sample 1 is input_ids \[4\], .* sample 0 is input_ids \[3\].*collate_fn pads them"
    ):
        samples_of_part(rows(), "mine").batch(torch.tensor([0, 1]))
    wordy = samples_of_part([{"ids": [1, 2], "text": "word", "label": 0}] * 3, "mine")
    with pytest.raises(
        DataError, match=r"a batch's inputs, 'text', position 0 should be a tensor, found str\. Leave it out"
    ):
        wordy.batch(torch.tensor([0, 1]))


FACTORY = """
from torch.utils.data import DataLoader
from tests.loading.test_pairs import padded, rows
def data(): return {"train": DataLoader(rows()[:20], collate_fn=padded), "test": rows()[20:21]}
def parts(): return {"train": rows()[:20], "val": rows()[20:25], "test": rows()[25:]}
"""


def test_parts_of_a_factory(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    data = load_data(f"{tmp_path / 'mine.py'}:parts", seed=0, task="regression")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 5, 5] and data.classes == 0
    assert set(data.example(1)) == {"input_ids", "attention_mask"} and data.given_as == "prepared"
