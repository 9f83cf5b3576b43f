"""Example inputs from text."""

from __future__ import annotations

import pytest
import torch

from sparsify.errors import LoadError
from sparsify.loading.inputs import example_inputs


def test_shapes_names_and_types():
    args, kwargs = example_inputs(["2x3x8x8", "ids=2x16:int64", "mask=2x16:bool", "scale=2:float64"])
    assert [(tuple(x.shape), x.dtype) for x in args] == [((2, 3, 8, 8), torch.float32)]
    assert {name: (tuple(x.shape), x.dtype) for name, x in kwargs.items()} == {
        "ids": ((2, 16), torch.int64),
        "mask": ((2, 16), torch.bool),
        "scale": ((2,), torch.float64),
    }
    assert set(kwargs["ids"].unique().tolist()) == {0, 1}
    assert torch.equal(example_inputs(["2x3"])[0][0], example_inputs(["2x3"])[0][0])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["2x"], "should be SHAPE, NAME=SHAPE or NAME=SHAPE:TYPE"),
        (["x=2x0"], "sizes from 1"),
        (["x=2x3:int8"], "types are float32"),
        (["x=2", "2x3"], "Put unnamed inputs first"),
        (["x=2", "x=3"], "names 'x' twice"),
    ],
)
def test_misuse_says_what_to_do(items, message):
    with pytest.raises(LoadError, match=message):
        example_inputs(items)
