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
    assert (len(outer), outer.labels.tolist()) == (1, [2])
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
    with pytest.raises(ValueError, match="3 inputs and 2 labels"):
        TensorSamples(PIXELS, LABELS[:2])
