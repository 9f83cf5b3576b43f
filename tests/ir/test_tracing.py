"""Tracing: both phases behave like the model, and what cannot be traced is refused with a reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.errors import TraceError
from sparsify.ir import Program, Stage, TraceWarning, trace
from tests.cases import CASES, digits


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_phases_equal_eager_in_outputs_and_gradients(case):
    model = case.build()
    program = trace(model, case.args)
    assert program.stage is Stage.TRACED
    for training in (True, False):
        runs = []
        for callee in (model, program):
            buffers = {name: value.clone() for name, value in model.named_buffers()}
            callee.train(training)
            torch.manual_seed(3)
            logits = program.logits(callee(*case.args))
            parameters = [p for p in model.parameters() if p.requires_grad] if training else []
            grads = torch.autograd.grad(logits.square().sum(), parameters, allow_unused=True) if training else ()
            moved = {name: value.clone() for name, value in model.named_buffers()}
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
            runs.append((logits, grads, moved))
        (want, want_grads, want_buffers), (have, have_grads, have_buffers) = runs
        assert torch.equal(want, have)
        assert all(torch.equal(want_buffers[name], have_buffers[name]) for name in want_buffers)
        for w, h in zip(want_grads, have_grads, strict=True):
            assert (w is None) == (h is None)
            assert w is None or torch.allclose(w, h, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parameters_are_the_models_own(case):
    model = case.build()
    program = trace(model, case.args)
    mine, theirs = dict(program.named_parameters()), dict(model.named_parameters())
    assert list(mine) == list(theirs)
    assert all(mine[name] is theirs[name] for name in mine)
    assert set(model.state_dict()) <= set(program.state_dict())


def test_tracing_leaves_the_model_as_it_was():
    case = next(c for c in CASES if c.name == "conv_bn")
    model = case.build().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.random.get_rng_state()
    trace(model, case.args)
    assert not model.training
    assert torch.equal(rng, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        h = self.fc(x)
        return h if h.sum() > 0 else -h


def test_data_dependent_branch_is_refused_with_the_line():
    with pytest.raises(TraceError, match=r"test_tracing\.py:\d+ in forward.*torch\.where"):
        trace(Branching(), (torch.randn(2, 4),))


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient / gradient.norm()


class CustomBackward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return _Normalised.apply(self.fc(x))


def test_a_lost_custom_backward_is_refused():
    with pytest.raises(TraceError, match=r"_Normalised is lost: a position of the incoming gradient.*custom_op"):
        trace(CustomBackward(), (torch.randn(2, 4),))


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x.reshape(4, 4))


def test_a_fixed_batch_is_said():
    with pytest.warns(TraceWarning, match="fixes its batch size at 4"):
        program = trace(FixedBatch(), (torch.randn(4, 4),))
    assert not program.dynamic_batch


def test_wrong_input_is_refused_with_both_shapes():
    program = trace(nn.Linear(4, 3), (torch.randn(2, 4),))
    with pytest.raises(TraceError, match=r"\[N, 4\].*\[2, 5\]"):
        program(torch.randn(2, 5))
    with pytest.raises(TraceError, match="arguments input; found 2 by position: too many"):
        program(torch.randn(2, 4), torch.randn(2, 4))


def test_a_batch_of_one_stays_dynamic():
    program = trace(nn.Linear(4, 3), (torch.randn(1, 4),))
    assert program.dynamic_batch
    assert program(torch.randn(7, 4)).shape == (7, 3)


def test_an_example_that_is_a_view_with_gaps_fixes_nothing():
    rows = digits()[0].squeeze(1)[:, :1]
    program = trace(nn.Linear(8, 3), rows, dynamic={"input": {1: "T"}})
    assert program.dynamic_batch and all(allowed.everything for allowed in program.ranges["eval"].values())
    assert program(rows[:1].repeat(1, 5, 1)).shape == (1, 5, 3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_clone_and_file_round_trip(case, tmp_path):
    program = trace(case.build(), case.args).eval()
    program.save(tmp_path / "a.sparsify")
    loaded, clone = Program.load(tmp_path / "a.sparsify"), program.clone()
    for other in (loaded, clone):
        assert other.text() == program.text()
        assert not {id(p) for p in other.parameters()} & {id(p) for p in program.parameters()}
        assert len(list(other.parameters())) == len(list(program.parameters()))
        for name, value in program.outputs(*case.args).items():
            assert torch.equal(value, other.outputs(*case.args)[name])
    loaded.save(tmp_path / "b.sparsify")
    assert (tmp_path / "a.sparsify").read_bytes() == (tmp_path / "b.sparsify").read_bytes()


def test_module_is_an_ordinary_module():
    case = next(c for c in CASES if c.name == "conv_bn")
    model = case.build()
    module = trace(model, case.args).module()
    assert set(module.state_dict()) == set(model.state_dict())
    module.eval(), model.eval()
    assert torch.equal(module(*case.args), model(*case.args))


def test_buffers_stay_shared_between_phases_after_conversion():
    case = next(c for c in CASES if c.name == "conv_bn")
    program = trace(case.build(), case.args).double()
    x = case.args[0].double()
    with pytest.raises(TraceError, match="dtype"):
        program(x)
    names = {name for name, _ in program.named_buffers()}
    for phase in program.phases.values():
        assert {name for name, _ in phase.named_buffers()} == names
        assert all(program.get_buffer(name) is value for name, value in phase.named_buffers())
