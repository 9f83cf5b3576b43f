"""Trees of tensors by hand: mapped, moved, counted, described."""

from __future__ import annotations

import torch

from sparsify.parts.trees import described, mapped, moved, rows_of, tensors

A, B = torch.tensor([1.0, 2.0]), torch.tensor([[3], [4]])


def test_mapped_keeps_the_structure_and_what_is_no_tensor():
    found = mapped(lambda t: t + 1, {"a": A, "pair": (B, None)})
    assert found["a"].tolist() == [2.0, 3.0] and found["pair"][0].tolist() == [[4], [5]] and found["pair"][1] is None
    assert mapped(lambda t: t * 2, A).tolist() == [2.0, 4.0]


def test_tensors_rows_and_devices():
    assert [t.tolist() for t in tensors({"b": B, "a": (A,)})] == [[[3], [4]], [1.0, 2.0]]
    assert rows_of(B) == rows_of(({"x": B},)) == 2
    assert moved({"a": A}, torch.device("meta"))["a"].device.type == "meta"


def test_descriptions_tell_structure_type_and_shape_apart():
    assert len({described(tree) for tree in (A, (A,), {"a": A}, {"b": A}, {"a": B}, {"a": A.int()})}) == 6
