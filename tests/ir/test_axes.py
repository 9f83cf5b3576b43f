"""Where an axis is after an operator, worked by hand and against the operator itself."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from sparsify.ir import TensorSpec
from sparsify.ir.axes import Axis, axis_after

aten = torch.ops.aten


def after(target, shape, made, axis, *args, **kwargs):
    graph = fx.Graph()
    value = graph.placeholder("x")
    node = graph.call_function(target, (value, *args), kwargs)
    for place, size in ((value, shape), (node, made)):
        place.meta["spec"] = TensorSpec(place.name, size, "float32")
    found = axis_after(node, axis)
    return None if found is None else (found.dimension, found.run)


N = "N"
MOVES = {
    "flatten": (aten.flatten.using_ints, (N, 8, 4, 4), (N, 128), 1, (1,), (1, 16)),
    "only the places": (aten.flatten.using_ints, (N, 8, 4, 4), (N, 8, 16), 1, (2,), (1, 1)),
    "pooled to one": (aten.view.default, (N, 8, 1, 1), (N, 8), 1, ([-1, 8],), (1, 1)),
    "one before": (aten.squeeze.dim, (N, 1, 8), (N, 8), 2, (1,), (1, 1)),
    "split": (aten.view.default, (N, 5, 8), (N, 5, 2, 4), 2, ([-1, 5, 2, 4],), None),
    "joined with the batch": (aten.view.default, (N, 5, 8), ("5*N", 8), 2, ([-1, 8],), None),
    "of size one": (aten.view.default, (N, 1, 4), (N, 4), 1, ([-1, 4],), None),
    "transposed": (aten.transpose.int, (N, 5, 8), (N, 8, 5), 2, (-1, 1), (1, 1)),
    "permuted": (aten.permute.default, (N, 8, 4, 5), (N, 4, 5, 8), 1, ([0, 2, 3, 1],), (3, 1)),
    "moved": (aten.movedim.int, (N, 8, 4, 5), (N, 4, 5, 8), 1, (1, -1), (3, 1)),
    "mean of places": (aten.mean.dim, (N, 8, 4, 4), (N, 8), 1, ([2, 3],), (1, 1)),
    "mean before": (aten.mean.dim, (N, 5, 8), (N, 8), 2, ([1],), (1, 1)),
    "mean kept": (aten.mean.dim, (N, 5, 8), (N, 1, 8), 2, ([1], True), (2, 1)),
    "mean over it": (aten.mean.dim, (N, 5, 8), (N, 5), 2, ([-1],), None),
    "selected": (aten.select.int, (N, 5, 8), (N, 8), 2, (1, 0), (1, 1)),
    "cut": (aten.slice.Tensor, (N, 5, 8), (N, 3, 8), 2, (1, 0, 3), (2, 1)),
    "cut itself": (aten.slice.Tensor, (N, 5, 8), (N, 5, 4), 2, (2, 0, 4), None),
    "pooled": (aten.avg_pool2d.default, (N, 8, 4, 4), (N, 8, 2, 2), 1, ([2, 2],), (1, 1)),
    "pooled places": (aten.avg_pool2d.default, (N, 8, 4, 4), (N, 8, 2, 2), 2, ([2, 2],), None),
    "pooled without a batch": (aten.avg_pool2d.default, (8, 4, 4), (8, 2, 2), 1, ([2, 2],), None),
    "padded": (aten.pad.default, (N, 8, 4, 4), (N, 8, 6, 6), 1, ([1, 1, 1, 1],), (1, 1)),
    "padded itself": (aten.pad.default, (N, 8, 4, 4), (N, 9, 4, 4), 1, ([0, 0, 0, 0, 1, 0],), None),
    "softmax": (aten.softmax.int, (N, 8), (N, 8), 1, (1,), None),
}


@pytest.mark.parametrize("name", MOVES)
def test_after(name):
    target, shape, made, axis, args, expected = MOVES[name]
    assert after(target, shape, made, Axis(axis), *args) == expected


def test_runs_multiply():
    assert after(aten.view.default, (N, 32, 5), (N, 160), Axis(1, 4), [-1, 160]) == (1, 20)


@pytest.mark.parametrize("name", [name for name, (*_, expected) in MOVES.items() if expected is not None])
def test_the_operator_agrees(name):
    """Of an input that is 1 at one place of the axis, the result is not 0 at the places that the axis says, and there only."""
    target, shape, _, axis, args, (dimension, run) = MOVES[name]
    x = torch.zeros([2 if size == N else size for size in shape])
    x.select(axis, 3).fill_(1.0)
    found = target(x, *args).movedim(dimension, 0).flatten(1).ne(0).any(dim=1).nonzero().flatten()
    assert found.tolist() == list(range(3 * run, 4 * run))
