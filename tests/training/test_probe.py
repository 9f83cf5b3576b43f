"""Probes: what they put back, the dropout they replay, and gradients of what was hidden."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.ir.sites import layouts
from sparsify.training.probe import ProbedBatch
from tests.cases import ConvBn, Dropouts, digits

X, Y = digits(16)


def counted():
    return {"probes": 0, "forwards": 0, "backwards": 0}


def loss(program):
    return lambda: nn.functional.cross_entropy(program(X), Y)


def made(model, pipeline):
    torch.manual_seed(0)
    return sp.Pipeline.parse(pipeline)(sp.trace(model, (X,))).train()


def lowered(model, pattern="unstructured"):
    program = made(model, f"insert-masks{{density=0.3 pattern={pattern}}} | insert-gradient-taps")
    with torch.no_grad():
        for name, mask in program.masks().items():
            program.weight(name).mul_(mask)
    return sp.Pipeline.parse("lower-masks")(program)


def gradients(program):
    parameters = dict(program.named_parameters())
    found = torch.autograd.grad(loss(program)(), list(parameters.values()), allow_unused=True)
    return {n: g for n, g in zip(parameters, found, strict=True) if g is not None}


def test_a_probe_at_the_same_weights_sees_the_same_dropout():
    for model, pipeline in ((Dropouts(), "record-randomness"), (Dropouts(), "eliminate-dead-code")):
        program, counts = made(model, pipeline), counted()
        want = gradients(program)
        after = torch.random.get_rng_state()
        have = ProbedBatch(program, loss(program), counts, of_step=True, dense=False).evaluate().gradients
        same = all(torch.equal(want[name], value) for name, value in have.items())
        assert same == (pipeline == "record-randomness") and have.keys() == want.keys()
        assert torch.equal(torch.random.get_rng_state(), after)
        assert counts == {"probes": 1, "forwards": 1, "backwards": 1}


def test_other_batches_draw_once_and_leave_the_record_of_the_step():
    program, counts = made(Dropouts(), "record-randomness"), counted()
    of_step = ProbedBatch(program, loss(program), counts, of_step=True, dense=False)
    want = gradients(program)
    other, another = (ProbedBatch(program, loss(program), counts, of_step=False, dense=False) for _ in range(2))
    first = float(other.evaluate().loss)
    assert float(other.loss()) == first != float(another.loss())
    assert all(torch.equal(want[name], value) for name, value in of_step.evaluate().gradients.items())
    assert counts == {"probes": 4, "forwards": 4, "backwards": 2}


def test_weights_statistics_and_taps_are_put_back_even_after_an_error():
    program = lowered(ConvBn())
    for tap in program.taps().values():
        tap.armed = True
    loss(program)().backward()
    recorded = {name: tap.gradient.clone() for name, tap in program.taps().items()}
    state = {name: value.clone() for name, value in program.state_dict().items()}
    objects = {name: p.data_ptr() for name, p in program.named_parameters()}
    there = {name: torch.full_like(p, 0.1) for name, p in program.named_parameters()}

    def failing():
        assert float(program.weight("fc.weight").detach().min()) > 0.09
        program(X)
        raise KeyError("data")

    for closure in (loss(program), failing):
        batch = ProbedBatch(program, closure, counted(), of_step=True, dense=True)
        try:
            batch.evaluate(there)
        except KeyError:
            assert closure is failing
        else:
            assert closure is not failing
        assert all(torch.equal(value, state[name]) for name, value in program.state_dict().items())
        assert {name: p.data_ptr() for name, p in program.named_parameters()} == objects
        assert all(torch.equal(tap.gradient, recorded[name]) and tap.armed for name, tap in program.taps().items())


def test_dense_gradients_of_a_snapshot_with_another_support():
    program = lowered(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    snapshot = {"1.weight": torch.randn(10, 64) * ~program.mask("1.weight")}
    found = ProbedBatch(program, loss(program), counted(), of_step=True, dense=True).evaluate(snapshot)
    weight = snapshot["1.weight"].clone().requires_grad_()
    value = nn.functional.cross_entropy(X.flatten(1) @ weight.T + program.weight("1.bias").detach(), Y)
    (want,) = torch.autograd.grad(value, weight)
    torch.testing.assert_close(found.loss, value.detach())
    torch.testing.assert_close(found.dense["1.weight"], want)
    torch.testing.assert_close(found.gradients["1.weight"], want * program.mask("1.weight"))


@pytest.mark.parametrize("elsewhere", ["here", "another mask", "everywhere"])
def test_a_probe_of_compact_weights_is_that_of_dense_ones(elsewhere):
    masked = lowered(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)), "grouped:8")
    compact = sp.Pipeline.parse("compact-grouped")(masked)
    assert set(layouts(compact)) == {"1.weight"}
    there = {name: torch.randn_like(value) for name, value in masked.named_parameters()}
    if elsewhere == "another mask":
        there["1.weight"] *= masked.mask("1.weight").roll(3, 1)
    at = None if elsewhere == "here" else there
    weight, kept = compact.get_parameter("1.weight"), compact.get_parameter("1.weight").detach().clone()
    (still_alive := loss(compact)()).backward()
    gradient = weight.grad
    for _ in range(2):  # the second time, the layouts for these values are known
        have, want = (
            ProbedBatch(program, loss(program), counted(), of_step=True, dense=True).evaluate(at)
            for program in (compact, masked)
        )
        torch.testing.assert_close(have.loss, want.loss)
        torch.testing.assert_close(have.gradients, want.gradients)
        torch.testing.assert_close(dict(have.dense), dict(want.dense))
        assert torch.equal(weight, kept) and weight.grad is gradient
    compact.verify()
    assert torch.equal(loss(compact)(), still_alive)


def test_under_random_masks_dense_gradients_average_to_those_of_visible_weights():
    """Every draw of three weights, weighed by its chance: the mean of the estimates is the mean over draws that show the weight."""
    x, y = torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.0, 2.0]]), torch.tensor([[0.7], [-0.4]])
    for rescale, pipeline in itertools.product(
        (False, True), ("insert-masks{density=0.67} | insert-gradient-taps", "")
    ):
        layer = nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[1.0, -1.5, 0.0]]))
        program = sp.trace(layer, (x,)).train()
        random = f"insert-random-masks{{rate=0.25 rescale={str(rescale).lower()}}}"
        program = sp.Pipeline.parse(" | ".join(part for part in (pipeline, random) if part))(program)
        batch = ProbedBatch(
            program, lambda p=program: (p(x) - y).pow(4).mean(), counted(), of_step=True, dense=True
        )  # fmt: skip
        mean, shown, chances = torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 3)
        for bits in itertools.product((0, 1), repeat=3):
            draw = torch.tensor([bits]).bool()
            chance = float(torch.where(draw, 0.75, 0.25).prod())
            program.get_buffer("weight_visible").copy_(draw)
            mean += chance * batch.evaluate().dense["weight"]
            scale = 1 / 0.75 if rescale else 1.0
            seen = (layer.weight.detach() * draw * scale).requires_grad_()
            (gradient,) = torch.autograd.grad(((x @ seen.T) - y).pow(4).mean(), seen)
            shown += chance * gradient * scale * draw
            chances += chance * draw
        torch.testing.assert_close(mean, shown / chances)
