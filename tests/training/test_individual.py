"""Individual calibration in a loop: what it adds to the loss, by which samples, and what is refused with what to do."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sparsify as sp
from sparsify.errors import RecipeError, TrainingError
from sparsify.loading import load_data
from sparsify.parts.jackknife import centres, jackknife
from sparsify.parts.samples import Subset
from sparsify.training import Settings, train
from sparsify.training.individual import set_aside, set_aside_count
from sparsify.training.plan import steps_per_epoch
from tests.cases import cnn, digits

X, Y = digits(96)
HELD = (X[64:], Y[64:])
METHOD = sp.methods.calirare(sp.methods.dense(), weight=0.25, refresh=3)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10))


def attached(method=METHOD, model=None, **given):
    program = sp.trace(model or network(), (X,)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    return program, sp.attach(method, program, optimizer, total_steps=8, **given)


def test_the_loss_of_the_first_batch_by_its_formula():
    program, trainer = attached(calibration=lambda: HELD)
    torch.manual_seed(3)
    logits = program(X[:64])
    found = trainer.loss(logits, Y[:64], inputs=X[:64])
    weight, bias = program.weight("4.weight"), program.weight("4.bias")

    def features(x):  # in eval mode, without dropout
        return torch.relu(x.flatten(1) @ program.weight("1.weight").T + program.weight("1.bias"))

    confidence, predicted = logits.softmax(1).max(1)
    pieces = jackknife(features(HELD[0]), HELD[1], weight, bias)
    centre = centres(pieces, features(X[:64]), predicted, weight, bias)
    error = (confidence - centre).abs().mean()
    assert found.item() == pytest.approx(0.75 * cross_entropy(logits, Y[:64]).item() + 0.25 * error.item(), abs=1e-6)
    assert trainer.readings() == {"individual_error": pytest.approx(error.item(), abs=1e-6)}


def test_the_penalty_alone_moves_the_weights():
    method = sp.methods.calirare(sp.methods.dense(), weight=1.0)
    program, trainer = attached(method, calibration=lambda: HELD)
    trainer.loss(program(X[:64]), Y[:64], inputs=X[:64]).backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in program.parameters())


def test_parameters_are_left_out_again_at_every_refresh_and_passes_are_counted():
    asked = []

    def calibration():
        asked.append(trainer.steps + 1)
        return HELD

    program, trainer = attached(calibration=calibration)
    for _ in range(8):
        trainer.loss(program(X[:64]), Y[:64], inputs=X[:64]).backward()
        trainer.step()
        trainer.optimizer.zero_grad()
    assert asked == [1, 4, 7]
    assert trainer.counts["forwards"] == 8 + 8 + 3


def test_a_copy_in_the_middle_trains_on_by_itself():
    method = sp.methods.calirare(sp.methods.rigl(density=0.3, update_every=2), refresh=3)
    program, trainer = attached(method, calibration=lambda: HELD)
    made = (program, trainer.optimizer, trainer)

    def steps(loop, count):
        for _ in range(count):
            torch.manual_seed(loop[2].steps)
            loop[2].loss(loop[0](X[:64]), Y[:64], inputs=X[:64]).backward()
            loop[2].step()
            loop[1].zero_grad()

    steps(made, 4)
    other = copy.deepcopy(made)
    steps(made, 4)
    ends = {name: value.clone() for name, value in program.state_dict().items()}
    steps(other, 4)
    for loop in (made, other):
        assert all(torch.equal(value, ends[name]) for name, value in loop[0].state_dict().items())
    assert other[2].counts == trainer.counts


def test_an_unknown_class_has_no_part_in_the_error():
    _, trainer = attached(sp.methods.calirare(sp.methods.widened(sp.methods.dense())), calibration=lambda: HELD)
    program = trainer.program
    assert trainer.loss(program(X), Y, inputs=X).isfinite()


class Softmax(nn.Sequential):
    def forward(self, x):
        return super().forward(x).softmax(1)


@pytest.mark.parametrize(
    ("method", "model", "calibration", "message"),
    [
        (METHOD, None, None, "give sparsify.attach calibration, a function"),
        (sp.methods.dense(), None, lambda: HELD, "has no use for calibration"),
        (METHOD, Softmax(*network()), lambda: HELD, "needs the features of the last layer.*cannot be found"),
        (sp.methods.calirare(sp.methods.dense(), samples=4000), nn.Sequential(nn.Flatten(), nn.Linear(64, 100)), lambda: HELD,
         "too large. Set samples to at most 40"),
    ],
)  # fmt: skip
def test_what_cannot_be_calibrated_is_refused_before_training(method, model, calibration, message):
    with pytest.raises(TrainingError, match=message):
        attached(method, model, calibration=calibration)


@pytest.mark.parametrize(
    ("held", "inputs", "message"),
    [
        (HELD, None, r"call trainer.loss\(program\(x\), y, inputs=x\)"),
        ((X[64:], Y[65:]), X, r"calibration should return .*found 32 inputs and labels \[31\]"),
        ((X[64:], Y[64:] + 1), X, "class numbers .* from 0 to 9"),
        ((X[:1], Y[:1]), X, "at least 2 samples"),
    ],
)
def test_what_a_loop_forgets_is_said(held, inputs, message):
    program, trainer = attached(calibration=lambda: held)
    with pytest.raises(TrainingError, match=message):
        trainer.loss(program(X), Y, inputs=inputs)


def test_more_samples_than_planned_are_refused():
    program, trainer = attached(sp.methods.calirare(sp.methods.dense(), samples=20), calibration=lambda: HELD)
    with pytest.raises(TrainingError, match=r"returned 32 samples.*at most 20 here"):
        trainer.loss(program(X), Y, inputs=X)


def test_a_step_that_did_not_use_the_loss_is_refused():
    program, trainer = attached(calibration=lambda: HELD)
    cross_entropy(program(X), Y).backward()
    with pytest.raises(TrainingError, match=r"has a loss of its own, which this step did not use.*inputs=x"):
        trainer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.5}, "^weight should be between"),
        ({"refresh": 0}, "^refresh should be between"),
        ({"samples": 1}, "^samples should be between"),
        ({"coverage": 90.0}, "^coverage should be between"),
        ({"damping": 0.0}, "^damping should be between"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(RecipeError, match=message):
        sp.methods.calirare(sp.methods.dense(), **options)


def test_a_second_penalty_is_refused():
    with pytest.raises(RecipeError, match="has this penalty already"):
        sp.methods.calirare(METHOD)


class Watched:
    """Samples that note which of them are fetched."""

    def __init__(self, samples):
        self._samples, self.targets, self.rows = samples, samples.targets, []

    def __len__(self):
        return len(self._samples)

    def batch(self, rows, *, seed=0):
        self.rows.append(rows)
        return self._samples.batch(rows, seed=seed)

    def fingerprint(self):
        return self._samples.fingerprint()


def test_a_run_does_not_train_on_the_samples_that_it_sets_aside(tmp_path):
    data = load_data("digits", seed=0)
    watched = Watched(Subset(data.train, torch.arange(240)))
    settings = Settings(epochs=2, batch_size=16, lr=0.05)
    method = sp.methods.calirare(sp.methods.rigl(density=0.5, update_every=4), samples=40)
    result = train(method, cnn(), watched, data.validation, settings, folder=tmp_path, key="k")
    aside, *trained_on = watched.rows
    assert len(aside) == 40 and result.counts["steps"] == 2 * (200 // 16)
    assert not {*aside.tolist()} & {*torch.cat(trained_on).tolist()}
    assert 0 < result.history[-1]["readings"]["individual_error"] < 1


def test_at_most_a_quarter_is_set_aside():
    plan = METHOD.individual
    assert set_aside_count(None, 100) == 0 and set_aside_count(plan, 100) == 25 and set_aside_count(plan, 10**6) == 128
    assert set_aside(None, Subset, torch.device("cpu"), seed=0) == (Subset, None)
    options = {"early_stop": None, "device": "cpu"}
    assert steps_per_epoch(METHOD, 100, batch_size=25, **options) == 3
    with pytest.raises(
        TrainingError, match="100 training samples, of which 25 are set aside, do not fill a batch of 80"
    ):
        steps_per_epoch(METHOD, 100, batch_size=80, **options)


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path):
    data = load_data("digits", seed=0)
    samples = Subset(data.train, torch.arange(200))
    settings = Settings(epochs=3, batch_size=16, lr=0.05, checkpoint_every=4)
    method = sp.methods.calirare(sp.methods.rigl(density=0.5, update_every=4), samples=40, refresh=5)

    def stop(row):
        if row["step"] == 17:  # after the checkpoint of step 16, whose leave-one-out parameters are of step 16 too
            raise KeyboardInterrupt

    whole, again = cnn(), cnn()
    given = (samples, data.validation, settings)
    result = train(method, whole, *given, folder=tmp_path / "a", key="k")
    with pytest.raises(KeyboardInterrupt):
        train(method, cnn(), *given, folder=tmp_path / "b", key="k", on_step=stop)
    assert train(method, again, *given, folder=tmp_path / "b", key="k", resume=True) == result
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_plan_without_its_slot_is_no_other_method():
    assert dataclasses.replace(METHOD, individual=None, name="dense", tasks=()) == sp.methods.dense()
