"""AGENT by hand on one weight, against gradients worked out on the masked model, and what it asks of the loop."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import RecipeError, TrainingError
from tests.cases import digits

X = torch.ones(2, 1)


@functools.cache
def one_weight():
    """Traced once; every run takes a copy."""
    return sp.trace(nn.Linear(1, 1, bias=False), (X,))


class OneWeight:
    """A weight w with the loss (w - t)^2 / 2 on the batch of target t; the targets are 1 and 3. It starts at 4, with a rate of 0.5."""

    def __init__(self, *, epoch_steps=2, targets=(1.0, 3.0), start=4.0, **options):
        self.program = one_weight().clone().train()
        with torch.no_grad():
            self.program.weight("weight").fill_(start)
        self.optimizer = torch.optim.SGD(self.program.parameters(), lr=0.5)
        method = sp.methods.agent(sp.methods.static_random(density=1.0), **options)
        self.trainer = sp.attach(
            method, self.program, self.optimizer, total_steps=10, epoch_steps=epoch_steps,
            sweep=lambda: (self.loss(target) for target in targets),
        )  # fmt: skip

    def loss(self, target):
        return lambda: (self.program(X) - target).square().mean() / 2

    def step(self, target):
        """One step on a batch; returns the weight after it."""
        self.loss(target)().backward()
        self.trainer.step(self.loss(target))
        self.optimizer.zero_grad()
        return float(self.program.weight("weight").detach())

    @property
    def coefficient(self):
        return next(iter(self.trainer.readings().values()))


HAND = {"gamma": 1.0, "initial": 0.5, "smoothing": 0.2}


def test_the_published_form_by_hand():
    one = OneWeight(**HAND)
    # Snapshot 4, u = 2. Batch 1: g = g_old = 3, so 3 + 0.5 (2 - 3) = 2.5.
    assert one.step(1.0) == 2.75
    # Batch 3: g = -0.25, g_old = 1, so -0.25 + 0.5 (2 - 1) = 0.25.
    assert one.step(3.0) == 2.625
    assert one.coefficient == 0.5
    # New losses 1.3203125 and 0.0703125, old 4.5 and 0.5: slope 0.3125, c = 0.8 * 0.5 + 0.2 * 0.3125 = 0.4625. u = 0.625.
    assert one.step(1.0) == pytest.approx(2.625 - 0.5 * (1.625 + 0.4625 * (0.625 - 1.625)))
    assert one.coefficient == pytest.approx(0.4625)


@pytest.mark.parametrize("coefficient", ["gradient", "layer"])
def test_the_coefficient_of_gradients_by_hand(coefficient):
    one = OneWeight(coefficient=coefficient, **HAND)
    one.step(1.0), one.step(3.0)
    # New and old gradients differ by a constant: slope 1, c = 0.8 * 0.5 + 0.2 = 0.6.
    assert one.step(1.0) == pytest.approx(2.625 - 0.5 * (1.625 - 0.6))
    assert one.trainer.readings() == {
        {"gradient": "coefficient", "layer": "coefficient weight"}[coefficient]: pytest.approx(0.6)
    }


def test_the_running_mean_by_hand_without_a_sweep():
    one = OneWeight(coefficient="gradient", snapshot="running", **HAND)
    assert one.step(1.0) == 2.5  # nothing to compare with
    # g = -0.5, g_old = 1, the mean of one old gradient is 3, trusted by half: -0.5 + 0.25 (3 - 1) = 0.
    assert one.step(3.0) == 2.5
    # Pairs (3, 3) and (-0.5, 1): slope 3.5 / 2, cut to 1. A new snapshot has no mean yet: g = 1.5.
    assert one.step(1.0) == 1.75
    assert one.coefficient == pytest.approx(0.6)
    assert one.trainer.counts["probes"] == 3


def test_a_subset_is_trusted_as_far_as_its_size_goes():
    one = OneWeight(snapshot="subset", snapshot_batches=1, **HAND)
    # u is the old gradient of the first batch alone, 3; the coefficient 0.5 * 1 / 2.
    assert one.step(3.0) == 4.0 - 0.5 * (1.0 + 0.25 * (3.0 - 1.0))


def test_a_fixed_coefficient_of_one_is_svrg():
    one = OneWeight(gamma=1.0, initial=1.0, coefficient="fixed", refresh_every=9)
    # On quadratics of one curvature, SVRG's gradient is that of the whole: w - 2 on every batch.
    assert [one.step(t) for t in (1.0, 1.0, 3.0)] == [3.0, 2.5, 2.25]
    assert one.coefficient == 1.0


def test_probes_and_passes_are_counted():
    one = OneWeight(**HAND)
    for target in (1.0, 3.0, 1.0):
        one.step(target)
    # Refreshes: 2 evaluations; then 2 evaluations and 2 losses. Steps: 3 evaluations beside the loop's own.
    assert one.trainer.counts == {
        "rounds": 0,
        "skipped_rounds": 0,
        "skipped_steps": 0,
        "probes": 9,
        "forwards": 12,
        "backwards": 10,
    }


def test_losses_without_spread_leave_the_coefficient_alone():
    one = OneWeight(targets=(2.0, 2.0), **HAND)
    for _ in range(5):
        one.step(2.0)
    assert one.coefficient == 0.5


def test_a_coefficient_is_cut_to_its_bound():
    for bound, expected in ((1.0, 0.4625), (0.25, 0.8 * 0.5 + 0.2 * 0.25)):
        one = OneWeight(bound=bound, **HAND)
        one.step(1.0), one.step(3.0), one.step(1.0)
        assert one.coefficient == pytest.approx(expected)


def network(method, *, seed=0):
    torch.manual_seed(seed)
    x, y = digits(48)
    program = sp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10)), (x,)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.3)

    def loss(rows):
        return lambda: nn.functional.cross_entropy(program(x[rows]), y[rows])

    batches = [slice(start, start + 16) for start in (0, 16, 32)]
    trainer = sp.attach(
        method, program, optimizer, total_steps=20, epoch_steps=6, sweep=lambda: (loss(rows) for rows in batches)
    )
    return program, optimizer, trainer, loss, batches


def gradients_of(weights, x, y):
    """Dense gradients of plain tensors, and the loss."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
    hidden = torch.tanh(x.flatten(1) @ leaves["1.weight"].T + leaves["1.bias"])
    loss = nn.functional.cross_entropy(hidden @ leaves["3.weight"].T + leaves["3.bias"], y)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)), float(loss.detach())


@pytest.mark.parametrize("base", [sp.methods.set, sp.methods.rigl])
def test_corrected_gradients_against_plain_tensors_while_masks_change(base):
    x, y = digits(48)
    method = sp.methods.agent(base(density=0.3, update_every=4, stop_at=18), gamma=0.5)
    program, optimizer, trainer, loss, batches = network(method)
    snapshot, mean, c, grown, due = {}, {}, 0.1, 0, 1
    for step in range(1, 16):
        rows = batches[step % 3]
        weights = {name: p.detach().clone() for name, p in program.named_parameters()}
        replaced = base is sp.methods.rigl and step % 4 == 0
        if not replaced and step >= due:
            found = [gradients_of(weights, x[some], y[some]) for some in batches]
            if snapshot:
                old = torch.tensor([gradients_of(snapshot, x[some], y[some])[1] for some in batches]).double()
                new = torch.tensor([value for _, value in found]).double()
                slope = torch.cov(torch.stack([new, old]))
                c = 0.7 * c + 0.3 * float((slope[0, 1] / slope[1, 1]).clamp(0, 1))
            mean = {name: torch.stack([g[name] for g, _ in found]).mean(0) for name in weights}
            snapshot, due, masks = weights, step + 6, {n: m.clone() for n, m in program.masks().items()}
        loss(rows)().backward()
        if not replaced:
            trainer.correct(loss(rows))
            now, _ = gradients_of(weights, x[rows], y[rows])
            then, _ = gradients_of(snapshot, x[rows], y[rows])
            for name, p in program.named_parameters():
                expected = now[name] + 0.5 * c * (mean[name] - then[name])
                if name in program.masks():
                    expected = expected * program.mask(name)
                    grown += int((program.mask(name) & ~masks[name] & (p.grad != now[name])).sum())
                torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-6)
        trainer.step(loss(rows))
        optimizer.zero_grad()
        assert trainer.readings() == {"coefficient": pytest.approx(c, rel=1e-4)}
    assert c != 0.1 and grown > 100, "weights grown since the snapshot are corrected too"


def test_the_correction_has_the_expected_value_zero():
    method = sp.methods.agent(sp.methods.static_random(density=0.3), gamma=1.0, initial=1.0, coefficient="fixed")
    program, optimizer, trainer, loss, batches = network(method)
    for rows in batches:
        loss(rows)().backward()
        trainer.step(loss(rows))
        optimizer.zero_grad()
    sums = {name: torch.zeros_like(p) for name, p in program.named_parameters()}
    state = trainer.state_dict()["correction"]
    for rows in batches:
        loss(rows)().backward()
        raw = {name: p.grad.clone() for name, p in program.named_parameters()}
        trainer.load_state_dict({**trainer.state_dict(), "correction": state})
        trainer.correct(loss(rows))
        for name, p in program.named_parameters():
            sums[name] += p.grad - raw[name]
        optimizer.zero_grad()
    assert max(float(value.abs().max()) for value in sums.values()) < 1e-6


@pytest.mark.parametrize(
    ("options", "given", "asked"),
    [
        ({}, {}, {"epoch_steps", "sweep"}),
        ({"snapshot": "subset"}, {"epoch_steps": 3}, {"sweep"}),
        ({"snapshot": "running"}, {}, {"epoch_steps"}),
        ({"refresh_every": 5}, {}, {"sweep"}),
        ({"snapshot": "running", "refresh_every": 5}, {}, set()),
        ({}, {"epoch_steps": 3, "sweep": lambda: iter(())}, set()),
    ],
)
def test_all_that_a_loop_has_to_provide_is_asked_for_at_once(options, given, asked):
    program = sp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (digits(4)[0],)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    method = sp.methods.agent(sp.methods.static_random(density=0.5), **options)
    if not asked:
        sp.attach(method, program, optimizer, total_steps=20, **given)
        return
    with pytest.raises(TrainingError, match=r"give sparsify\.attach .*trainer\.step\(lambda") as caught:
        sp.attach(method, program, optimizer, total_steps=20, **given)
    assert {name for name in ("epoch_steps=", "sweep,") if name in str(caught.value)} == {
        {"epoch_steps": "epoch_steps=", "sweep": "sweep,"}[name] for name in asked
    }
    assert not program.masks(), "the program is as it was"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshot": "half"}, "snapshot should be full or subset or running"),
        ({"coefficient": "loss2"}, "coefficient should be loss or gradient or layer or fixed"),
        ({"smoothing": 1.5}, "smoothing should be between"),
        ({"gamma": -0.1}, "gamma should be between"),
        ({"snapshot_batches": 0}, "snapshot_batches should be between"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(RecipeError, match=message):
        sp.methods.agent(sp.methods.rigl(density=0.1), **options)


def test_what_the_loop_has_to_provide():
    base = sp.methods.agent(sp.methods.rigl(density=0.1))
    assert base.name == "agent(rigl)"
    with pytest.raises(RecipeError, match="corrects gradients already"):
        sp.methods.agent(base)
    with pytest.raises(TrainingError, match=r"epoch_steps=len\(loader\)"):
        OneWeight(epoch_steps=None).step(1.0)
    with pytest.raises(TrainingError, match="the sweep is empty"):
        OneWeight(targets=()).step(1.0)
