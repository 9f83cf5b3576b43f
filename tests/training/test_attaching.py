"""Loops that do not train, or not quite: what is refused, what is skipped and said, and what works."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import PassError, SparsityWarning, TrainingError, TrainingWarning
from tests.training.loops import TRACED, X, Y, loss, mlp, rigl, run, started, strays

# --- rounds that never come, density that is never reached


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda: rigl(update_every=100), "no round in a run of 12 steps: none is due at all"),
        (lambda: rigl(update_every=100, stop_at=500), "no round in a run of 12 steps: the first is due on step 100"),
        (lambda: sp.methods.one_shot(density=0.2, prune_at=20), "no round .* the first is due on step 20"),
        (
            lambda: sp.methods.gmp(density=0.2, start_at=1, stop_at=40, update_every=4),
            r"end at density 0\.4\d+, not at 0\.2",
        ),
        (lambda: rigl(update_every=5, dense_until="80%"), "no round in a run of 12 steps"),
    ],
)
def test_rounds_that_never_come_are_refused_at_attach(method, message):
    with pytest.raises(TrainingError, match=message):
        started(method())


def test_a_run_that_ends_early_says_so_when_it_finishes_and_when_it_is_exported(tmp_path):
    program, optimizer, trainer = started(sp.methods.gmp(density=0.2, update_every=2))
    run(program, optimizer, trainer, 5)
    assert program.clone().unfinished == "method 'gmp' reaches density 0.2 on step 9 of 12"
    with pytest.warns(TrainingWarning, match=r"ends on step 5 of 12 at density 0\.\d+, where 0\.2 was asked for"):
        trainer.finish()
    with pytest.warns(TrainingWarning, match=r"has density 0\.\d+: method 'gmp' reaches density 0\.2 on step 9 of 12"):
        sp.export(program.eval(), tmp_path / "early.onnx", inputs=[X], form="dense")
    program, optimizer, trainer = started(sp.methods.gmp(density=0.2, update_every=2))
    run(program, optimizer, trainer, 12)
    trainer.finish()
    assert program.unfinished == "" and trainer.density == pytest.approx(0.2, abs=1e-3)
    with pytest.warns(TrainingWarning, match=r"step 13 is beyond total_steps \(12\)"):
        run(program, optimizer, trainer, 1)
    run(program, optimizer, trainer, 1)


# --- what is not training


def test_eval_mode_and_a_missing_backward_are_refused_at_the_step():
    program, optimizer, trainer = started(rigl(update_every=1))
    loss(program.eval()).backward()
    with pytest.raises(TrainingError, match=r"program in eval mode.*Call program\.train\(\)"):
        trainer.step()
    optimizer.zero_grad()
    program.train()
    with pytest.raises(TrainingError, match=r"no gradient on step 1\. Call trainer\.step\(\) after loss\.backward"):
        trainer.step()
    loss(program.eval()).backward()
    program.train()
    with pytest.raises(TrainingError, match=r"no dense gradient reached .* during the forward pass"):
        trainer.step()


@pytest.mark.parametrize(
    "method",
    [
        rigl(),
        sp.methods.set(density=0.2, update_every=3),
        sp.methods.gmp(density=0.2, update_every=2),
        sp.methods.static_random(density=0.2),
    ],
)
def test_frozen_weights_stay_dense_and_as_they_are(method):
    program = TRACED.clone()
    program.weight("1.weight").requires_grad_(False)
    before = program.weight("1.weight").clone()
    with pytest.warns(SparsityWarning, match=r"1\.weight \(2,048 weights: frozen"):
        program, optimizer, trainer = started(
            method, program=program, make=lambda p: torch.optim.SGD([q for q in p if q.requires_grad], lr=0.1)
        )
    run(program, optimizer, trainer, 12)
    assert torch.equal(program.weight("1.weight"), before) and "1.weight" not in program.masks()
    assert trainer.left_dense == {"1.weight": "frozen (requires_grad is False)"}
    maskable = 32 * 24 + 24 * 10
    assert trainer.density == round(0.2 * maskable) / maskable


def test_nothing_but_frozen_weights_is_refused():
    program = TRACED.clone().requires_grad_(False)
    bias = program.weight("5.bias").requires_grad_(True)
    with pytest.raises(PassError, match=r"1\.weight: frozen"):
        started(rigl(), program=program, make=lambda p: torch.optim.SGD([bias], lr=0.1))


@pytest.mark.parametrize("method", [rigl(), sp.methods.gmp(density=0.2, update_every=3)])
def test_a_weight_frozen_later_keeps_its_mask_and_is_named_once(method):
    program, optimizer, trainer = started(method)
    run(program, optimizer, trainer, 1)
    program.weight("3.weight").requires_grad_(False)
    mask, value = program.mask("3.weight").clone(), program.weight("3.weight").detach().clone()
    optimizer.zero_grad()
    with pytest.warns(TrainingWarning, match=r"3\.weight are frozen since the run began") as given:
        run(program, optimizer, trainer, 11)
    assert len(given) == 1 and trainer.counts["rounds"] >= 2
    assert torch.equal(program.mask("3.weight"), mask) and torch.equal(program.weight("3.weight"), value)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.used, self.unused = nn.Linear(64, 32), nn.Linear(32, 10), nn.Linear(32, 4)

    def forward(self, x):
        hidden = self.body(x.flatten(1)).relu()
        return {"logits": self.used(hidden), "other": self.unused(hidden)}


@pytest.mark.filterwarnings("ignore:the logits do not depend")
def test_a_weight_that_the_loss_does_not_reach_is_named_once_and_training_goes_on():
    torch.manual_seed(0)
    program, optimizer, trainer = started(rigl(update_every=2), program=sp.trace(TwoHeads(), (X[:2],)))
    mask = program.mask("unused.weight").clone()
    with pytest.warns(TrainingWarning, match=r"the loss does not reach unused\.weight") as given:
        for _ in range(12):
            nn.functional.cross_entropy(program(X)["logits"], Y).backward()
            trainer.step()
            optimizer.zero_grad()
    assert len(given) == 1 and trainer.counts["rounds"] == 4
    assert torch.equal(program.mask("unused.weight"), mask) and strays(program) == 0


# --- steps that are skipped, scaled, evaluated


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("step", [1, 3])  # 3 is a round that takes the place of the optimizer's step
def test_a_step_without_finite_gradients_changes_nothing_and_is_said_once(bad, step):
    program, optimizer, trainer = started(rigl())
    run(program, optimizer, trainer, step - 1)
    before = {name: value.clone() for name, value in program.state_dict().items()}
    with pytest.warns(TrainingWarning, match=rf"gradients of step {step} are not finite") as given:
        for _ in range(2):
            (loss(program) * bad).backward()
            trainer.step()
            optimizer.zero_grad()
            assert step == 1 or all(torch.equal(value, before[name]) for name, value in program.state_dict().items())
    assert len(given) == 1 and trainer.counts["skipped_steps"] == 2
    run(program, optimizer, trainer, 12 - trainer.steps)
    assert all(bool(p.isfinite().all()) for p in program.parameters()) and strays(program) == 0


def test_training_that_never_has_finite_gradients_ends():
    program, optimizer, trainer = started(sp.methods.static_random(density=0.2), total=200)
    with pytest.warns(TrainingWarning), pytest.raises(TrainingError, match="not finite on 100 steps in a row"):
        for _ in range(200):
            (loss(program) * float("nan")).backward()
            trainer.step()
            optimizer.zero_grad()
    assert trainer.steps == 100


def scaled(way, method, init_scale=2.0**10, factor=1.0):
    program, optimizer, trainer = started(method)
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=10_000)
    for _ in range(12):
        scaler.scale(loss(program) * factor).backward()
        if way == "scaler.step":
            scaler.step(trainer)
        else:
            if way == "clipped":
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(program.parameters(), 1e9)
            trainer.step(scaler=scaler)
        scaler.update()
        optimizer.zero_grad()
    return program, trainer


@pytest.mark.parametrize("way", ["scaler.step", "trainer.step", "clipped"])
@pytest.mark.parametrize("method", [rigl(), sp.methods.dst_ee(density=0.2, update_every=3, c=1e-3)])
def test_a_power_of_two_of_a_grad_scaler_changes_no_bit(way, method):
    plain, optimizer, trainer = started(method)
    run(plain, optimizer, trainer, 12)
    program, other = scaled(way, method)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in program.state_dict().items())
    assert other.counts == trainer.counts


@pytest.mark.parametrize("way", ["scaler.step", "trainer.step"])
def test_a_grad_scaler_that_overflows_skips_and_finds_its_scale(way):
    with pytest.warns(TrainingWarning, match="not finite"):
        program, trainer = scaled(way, rigl(), init_scale=2.0**120, factor=2.0**12)
    assert (
        2 <= trainer.counts["skipped_steps"] < 12 and trainer.counts["rounds"] + trainer.counts["skipped_rounds"] == 2
    )
    assert all(bool(p.isfinite().all()) for p in program.parameters())


def test_a_grad_scaler_in_another_order_is_refused():
    program, _, trainer = started(rigl())
    scaler = torch.amp.GradScaler("cpu")
    loss(program).backward()
    with pytest.raises(
        TrainingError, match=r"Call scaler\.scale\(loss\)\.backward\(\), then trainer\.step\(scaler=scaler\)"
    ):
        trainer.step(scaler=scaler)
    scaler.scale(loss(program)).backward()
    scaler.unscale_(trainer)
    with pytest.raises(TrainingError, match=r"Call scaler\.unscale_\(optimizer\), then trainer\.step\(scaler=scaler\)"):
        scaler.step(trainer)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_trains_by_closures(search):
    program, optimizer, trainer = started(
        rigl(), make=lambda p: torch.optim.LBFGS(p, max_iter=4, line_search_fn=search)
    )

    def closure():
        optimizer.zero_grad()
        value = loss(program)
        value.backward()
        return value

    before, masks, evaluations = float(closure().detach()), {n: m.clone() for n, m in program.masks().items()}, 0

    def counted():
        nonlocal evaluations
        evaluations += 1
        return closure()

    for _ in range(12):
        now = float(closure().detach())
        assert float(trainer.step(counted).detach()) == now, (
            "as optimizer.step(closure) returns the loss before the step"
        )
        assert strays(program) == 0
    assert trainer.counts["forwards"] == trainer.counts["backwards"] == evaluations > 12
    assert float(closure().detach()) < before / 2 and trainer.counts["rounds"] == 2
    assert any(not torch.equal(masks[name], mask) for name, mask in program.masks().items())
    with pytest.warns(TrainingWarning), pytest.raises(TrainingError, match=r"call trainer\.step\(closure\)"):
        trainer.step()


def test_lbfgs_and_corrections_are_refused_with_the_way_out():
    with pytest.raises(TrainingError, match=r"corrects gradients.*Attach another optimizer"):
        started(sp.methods.agent(rigl()), make=torch.optim.LBFGS, epoch_steps=2)


# --- optimizers: several, parts, and their own steps


def test_two_optimizers_train_like_one():
    one, optimizer, trainer = started(rigl())
    run(one, optimizer, trainer, 12)
    two = TRACED.clone().train()
    parts = [torch.optim.SGD(p, lr=0.1, momentum=0.9) for p in (list(two.parameters())[:3], list(two.parameters())[3:])]
    trainer = sp.attach(rigl(), two, parts, total_steps=12)
    run(two, trainer.optimizer, trainer, 12)
    assert all(torch.equal(value, one.state_dict()[name]) for name, value in two.state_dict().items())


def test_optimizers_that_do_not_train_the_program_are_refused():
    program = TRACED.clone()
    sgd = lambda p: torch.optim.SGD(p, lr=0.1)  # ruff: ignore[lambda-assignment]
    with pytest.raises(TrainingError, match=r"Add them to it or attach a list of optimizers.*requires_grad_\(False\)"):
        sp.attach(rigl(), program, sgd([program.weight("5.weight")]), total_steps=12)
    with pytest.raises(TrainingError, match=r"does not hold 6 parameters.*Build it over program\.parameters"):
        sp.attach(rigl(), program, sgd(mlp().parameters()), total_steps=12)
    with pytest.raises(TrainingError, match="held by two optimizers"):
        sp.attach(rigl(), program, [sgd(program.parameters()), sgd([program.weight("5.weight")])], total_steps=12)
    for wrong in ([], None, "adam", mlp()):
        with pytest.raises(TrainingError, match="attach needs an optimizer, or a list"):
            sp.attach(rigl(), program, wrong, total_steps=12)


@pytest.mark.parametrize("schedule", [False, True])
def test_a_step_of_the_optimizer_that_is_not_the_trainer_s_is_refused(schedule):
    program, optimizer, trainer = started(rigl())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=1.0) if schedule else None
    before = program.weight("1.weight").detach().clone()
    loss(program).backward()
    with pytest.raises(TrainingError, match=r"SGD\.step\(\) was called by the loop.*remove optimizer\.step\(\)"):
        optimizer.step()
    assert torch.equal(program.weight("1.weight"), before), "the step was not made"
    trainer.step()
    assert scheduler is None or scheduler.step() is None
    with pytest.raises(TrainingError, match="the batch be stepped twice"):
        optimizer.step()
    optimizer.zero_grad()
    run(program, optimizer, trainer, 11)
    trainer.finish()
    loss(program).backward()
    optimizer.step()  # the run is over
