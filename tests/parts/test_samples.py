"""Samples by hand: bytes scaled, channels normalised, subsets of subsets, fingerprints."""

from __future__ import annotations

import pytest
import torch

from sparsify.parts.samples import Subset, TensorSamples

PIXELS = torch.tensor([[[[0, 255]]], [[[51, 102]]], [[[255, 255]]]], dtype=torch.uint8)  # [3, 1, 1, 2]
LABELS = torch.tensor([2, 0, 1])


def test_bytes_become_zero_to_one_and_are_normalised():
    x, y = TensorSamples(PIXELS, LABELS).batch(torch.tensor([1, 0]))
    assert x.tolist() == [[[[0.2, 0.4]]], [[[0.0, 1.0]]]] or torch.allclose(
        x, torch.tensor([[[[0.2, 0.4]]], [[[0.0, 1.0]]]])
    )
    assert y.tolist() == [0, 2]
    normalised = TensorSamples(PIXELS, LABELS, mean=torch.tensor([0.2]), std=torch.tensor([0.5]))
    torch.testing.assert_close(normalised.batch(torch.tensor([1]))[0], torch.tensor([[[[0.0, 0.4]]]]))


def test_a_subset_of_a_subset():
    inner = Subset(TensorSamples(PIXELS, LABELS), torch.tensor([2, 0]))
    outer = Subset(inner, torch.tensor([1]))
    assert (len(outer), outer.targets.tolist()) == (1, [2])
    assert torch.equal(outer.batch(torch.tensor([0]))[0], TensorSamples(PIXELS, LABELS).batch(torch.tensor([0]))[0])


def test_fingerprints_see_values_labels_and_rows():
    base = TensorSamples(PIXELS, LABELS).fingerprint()
    other = PIXELS.clone()
    other[2, 0, 0, 1] = 254
    assert base == TensorSamples(PIXELS.clone(), LABELS.clone()).fingerprint()
    texts = {base, TensorSamples(other, LABELS).fingerprint(), TensorSamples(PIXELS, LABELS.flip(0)).fingerprint()}
    texts |= {Subset(TensorSamples(PIXELS, LABELS), torch.tensor(rows)).fingerprint() for rows in ([0, 1], [1, 0])}
    assert len(texts) == 5


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="3 inputs and 2 targets"):
        TensorSamples(PIXELS, LABELS[:2])


def test_inputs_by_name_and_targets_of_any_type():
    inputs = {
        "image": PIXELS,
        "age": torch.tensor([[1.0], [2.0], [3.0]]),
        "words": torch.tensor([[1, 2], [3, 4], [5, 6]]),
    }
    targets = {"box": torch.arange(12.0).view(3, 4), "kind": LABELS}
    samples = Subset(TensorSamples(inputs, targets), torch.tensor([2, 0]))
    batch = samples.batch(torch.tensor([0]))
    assert list(batch.inputs) == ["image", "age", "words"]
    assert batch.inputs["image"].tolist() == [[[[1.0, 1.0]]]] and batch.inputs["age"].tolist() == [[3.0]]
    assert batch.inputs["words"].tolist() == [[5, 6]] and batch.inputs["words"].dtype is torch.int64
    assert batch.target["box"].tolist() == [[8.0, 9.0, 10.0, 11.0]] and batch.target["kind"].tolist() == [1]
    assert len(samples) == 2 and samples.targets["kind"].tolist() == [1, 2]


def test_a_batch_is_a_pair():
    inputs, target = batch = TensorSamples((PIXELS, LABELS), LABELS).batch(torch.tensor([1]))
    assert (inputs, target) == (batch.inputs, batch.target)
    assert isinstance(inputs, tuple) and inputs[1].tolist() == [0]


def test_fingerprints_see_names_shapes_and_types():
    x, y = torch.zeros(3, 4), torch.zeros(3)
    trees = [x, (x,), {"a": x}, {"b": x}, {"a": x.view(3, 2, 2)}, {"a": x.int()}]
    assert len({TensorSamples(tree, y).fingerprint() for tree in trees}) == len(trees)
