"""A graph runs without values before it runs: at a number of samples that fits, with the sizes it says, within bounds."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

import sparsify as sp
from sparsify.errors import LoadError
from sparsify.ir import TensorSpec
from sparsify.ir.rehearsal import rehearse, rehearse_graph

ATEN = torch.ops.aten


def run(*steps, spec=("N", 4)):
    """Rehearse ``steps``, (operator, further arguments), one after the other, on one input."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    for target, *arguments in steps:
        value = graph.call_function(target, (value, *arguments))
    graph.output((value,))
    rehearse_graph(
        graph, "of eval", lambda node: spec and TensorSpec("x", spec, "float32"), lambda name: torch.zeros(4)
    )


def test_a_chain_of_harmless_steps_may_not_end_in_a_terabyte():
    grow = [(ATEN.repeat.default, [1, 1024])] * 4
    with pytest.raises(LoadError, match=r"makes 8,589,934,592 values; at most 536,870,912"):
        run(*grow)
    run(*grow[:2])


def test_a_model_that_needs_a_multiple_of_frames_runs_at_some_batch():
    run((ATEN.view.default, [-1, 8, 4]))
    with pytest.raises(LoadError, match="cannot run on what it is given"):
        run((ATEN.view.default, [-1, 7, 5]))


@pytest.mark.parametrize(
    "step",
    [
        (ATEN.softmax.int, -1, -1),
        (ATEN.softmax.int, -1, 10**6),
        (ATEN.sum.default, 77),
        (ATEN.to.dtype, 255),
        (ATEN.clone.default, 9),
    ],
)
@pytest.mark.parametrize("spec", [("N", 4), None])
def test_a_number_is_no_dtype(step, spec):
    target, *arguments = step
    graph = fx.Graph()
    value = graph.placeholder("x")
    last = {a.name: v for a, v in zip(target._schema.arguments[1:], arguments, strict=False)}
    if target in (ATEN.sum.default, ATEN.clone.default):  # keywords only
        last = {"dtype" if target is ATEN.sum.default else "memory_format": arguments[0]}
    value = graph.call_function(ATEN.nonzero.default, (value,))  # from here on nothing is rehearsed
    graph.output((graph.call_function(target, (value,), last),))
    with pytest.raises(LoadError, match=r"which is not a (dtype|memory_format)\."):
        rehearse_graph(
            graph, "of eval", lambda node: spec and TensorSpec("x", spec, "float32"), lambda name: torch.zeros(4)
        )


def test_sizes_that_are_not_known_prove_nothing_and_those_of_values_end_it():
    run((ATEN.view.default, [7, 5]), spec=("N", "N1"))
    run((ATEN.view.default, [7, 5]), spec=None)
    run((ATEN.nonzero.default,), (ATEN.view.default, [7, 5]))


def test_nothing_of_the_program_or_of_the_random_state_changes():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 10))
    program = sp.trace(model, (torch.rand(2, 1, 8, 8),))
    before = {name: value.clone() for name, value in program.state_dict().items()}
    state = torch.random.get_rng_state()
    rehearse(program)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())
