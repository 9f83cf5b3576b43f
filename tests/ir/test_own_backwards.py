"""Functions with a backward pass of their own: which keep their gradient in a trace, exactly, and why others do not."""

from __future__ import annotations

import warnings

import pytest
import torch
from snntorch import surrogate
from torch import nn
from torch.autograd.function import Function, once_differentiable

from sparsify.errors import TraceError
from sparsify.ir import TraceWarning, trace
from sparsify.ir.own_backwards import OwnBackwards
from tests.cases import digits
from tests.spiking import ATan, Leaky

X, _ = digits(12)


def function(name, forward, backward, **more):
    """A Function of the old style: the forward pass keeps its input."""

    def forwards(ctx, x, *args):
        ctx.save_for_backward(x)
        return forward(x, *args)

    def backwards(ctx, gradient):
        return backward(ctx.saved_tensors[0], gradient)

    wrapped = more.pop("wrapped", lambda f: f)
    members = {"forward": staticmethod(forwards), "backward": staticmethod(wrapped(backwards)), **more}
    return type(name, (Function,), members)


class Net(nn.Module):
    def __init__(self, function, *args) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 20), nn.Linear(20, 10)
        self.apply_own, self.args = function.apply, args

    def forward(self, x):
        return self.second(self.apply_own(self.first(4 * x.flatten(1)), *self.args))


def compared(model):
    program = trace(model, (X[:5],)).train()
    parameters, found = list(model.parameters()), []
    for call in (model.train(), program):
        out = call(X)
        found.append((out, torch.autograd.grad(out, parameters, torch.linspace(-1e3, 1e3, 120).view_as(out))))
    assert torch.equal(found[0][0], found[1][0])
    return program, *(grads for _, grads in found)


def clipped(x, g):
    g = g.clone()
    g[x.abs() > 1] = 0
    return g


def chosen(x, g):
    g = g.clone()
    g[x >= 0] = -g[x >= 0]
    return g


KEPT = {
    "step, strictly above": function("Above", lambda x: (x > 0).float(), lambda x, g: g / (1 + 25 * x.abs()) ** 2),
    "sign, clipped": function("Sign", torch.sign, clipped),
    "rounding": function("Round", torch.round, lambda x, g: g),
    "half the positions": function("Chosen", lambda x: (x > 0).float(), chosen),
    "reversal": function("Reversal", lambda x: x.view_as(x), lambda x, g: -0.3 * g),
    "no gradient": function("Cut", lambda x: x * 2, lambda x, g: None),
    "once differentiable": function("Once", torch.round, lambda x, g: 2 * g, wrapped=once_differentiable),
}


@pytest.mark.parametrize("name", KEPT)
def test_gradients_are_kept_to_the_bit(name):
    program, want, have = compared(Net(KEPT[name])) if name != "no gradient" else (None, (), ())
    assert all(torch.equal(a, b) for a, b in zip(want, have, strict=True))
    if program is not None:
        assert want[0].any()
    else:
        trace(Net(KEPT[name]), (X[:5],))


def test_the_eval_phase_holds_the_forward_pass_only():
    program = trace(Net(KEPT["step, strictly above"]), (X[:5],))
    text = str(program)
    train, evaluated = text.split("  eval:")
    assert "aten.detach" in train and "aten.detach" not in evaluated and "aten.gt.Scalar" in evaluated


def test_constants_choose_what_is_kept():
    for alpha in (0.5, 4.0):
        _, want, have = compared(Net(ATan, alpha))
        assert all(torch.equal(a, b) for a, b in zip(want, have, strict=True)) and want[0].any()


SURROGATES = {
    "atan": surrogate.atan(),
    "fast_sigmoid": surrogate.fast_sigmoid(),
    "straight_through": surrogate.straight_through_estimator(),
    "triangular": surrogate.triangular(),
    "heaviside": surrogate.heaviside(),
    "SFS": surrogate.SFS(B=-0.5),
    "custom": surrogate.custom_surrogate(lambda x, g, spikes: g / (5 * x.abs() + 1) ** 2 + g * spikes),
    "sigmoid": surrogate.sigmoid(slope=4),
    "spike_rate_escape": surrogate.spike_rate_escape(),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_of_snntorch(name):
    """A backward pass that multiplies several times is kept to rounding, one that does once to the bit."""
    torch.manual_seed(0)
    _, want, have = compared(Leaky(spike_grad=SURROGATES[name]))
    assert any(g.any() for g in want)
    for a, b in zip(want, have, strict=True):
        if name in {"custom", "sigmoid", "spike_rate_escape"}:
            torch.testing.assert_close(a, b, rtol=0, atol=2e-6 * float(a.abs().max()))
        else:
            assert torch.equal(a, b)


def test_a_surrogate_that_overflows_does_not_reach_the_value():
    """exp(25 x) is infinite for x below -3.6, and the gradient of snntorch's sigmoid NaN there, in the model as in the trace."""
    model = Leaky(spike_grad=surrogate.sigmoid(slope=25))
    with torch.no_grad():
        model.fc1.bias.fill_(-9.0)
    program = trace(model, (X,)).train()
    assert torch.equal(program(X), model(X)) and program(X).isfinite().all()


REFUSED = {
    "clips": (function("Clip", torch.sign, lambda x, g: g.clamp(-1, 1)), "not proportional to the incoming gradient"),
    "mixes": (function("Centre", lambda x: x.round(), lambda x, g: g - g.mean()), "changes the gradient of other positions"),
    "draws": (function("Noise", torch.sign, lambda x, g: g * torch.rand_like(g)), "two calls with the same input give different"),
    "sums": (
        function("Sum", lambda x: x.round().sum(1, keepdim=True).expand(-1, 20) * 1.0, lambda x, g: g.sum(1, keepdim=True) * x),
        "changes the gradient of other positions",
    ),
    "fewer": (function("Half", lambda x: x.sign()[:, :20].repeat(2, 1)[: len(x) * 2], lambda x, g: g[: len(x)]), "of shape"),
    "raises": (function("Broken", torch.sign, lambda x, g: g * (1 / 0)), "could not be tried (ZeroDivisionError"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["clips", "mixes", "draws", "sums"])
def test_what_is_refused_says_which_function_and_why(name):
    own, why = REFUSED[name]
    with pytest.raises(TraceError, match=rf"{own.__name__} is lost: .*{why}.*register_autograd"):
        trace(Net(own), (X[:5],))


@pytest.mark.parametrize("name", REFUSED)
def test_reasons(name):
    own, why = REFUSED[name]
    functions = OwnBackwards()
    with functions.tried(), torch.no_grad():
        own.apply(X.flatten(1)[:, :20])
    assert why in functions.lost()


def test_without_the_comparison_a_lost_backward_is_warned_of():
    with pytest.warns(TraceWarning, match=r"Clip is lost: .*check=False"):
        trace(Net(REFUSED["clips"][0]), (X[:5],), check=False)


def test_a_backward_that_autograd_has_anyway_stays_as_it_is():
    """Memory-efficient functions: their operators alone are in the trace."""
    softmax = function(
        "Softmax",
        lambda x: torch.softmax(x, 1),
        lambda x, g: (p := torch.softmax(x, 1)) * (g - (p * g).sum(1, keepdim=True)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = trace(Net(softmax), (X[:5],))
    assert "aten.detach" not in str(program)


def test_functions_are_as_they_were_after_a_trace():
    trace(Net(KEPT["rounding"]), (X[:5],))
    assert "apply" not in vars(torch.autograd.function._SingleLevelFunction)
    x = torch.tensor([0.4, 1.6], requires_grad=True)
    KEPT["rounding"].apply(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1]
