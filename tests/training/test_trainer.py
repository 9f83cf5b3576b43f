"""The command's loop: learning rates by hand, early stop, mixed precision, devices, a method's own objective and averaging."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import TrainingError
from sparsify.ir import surgery
from sparsify.loading import load_data
from sparsify.methods import Averaging
from sparsify.parts.samples import Subset, TensorSamples
from sparsify.training import Settings, train
from sparsify.training.batches import Batches
from sparsify.training.plan import find_device
from sparsify.training.settings import lr_factor
from tests.cases import cnn

SETTINGS = Settings(epochs=4, lr=0.05, warmup=5, checkpoint_every=1000)
SMALL = dataclasses.replace(SETTINGS, batch_size=16)


@pytest.fixture(scope="module")
def data():
    return load_data("digits", seed=0)


@pytest.fixture(scope="module")
def small(data):
    """As many steps in an epoch, of the quarter of the samples."""
    return dataclasses.replace(data, train=Subset(data.train, torch.arange(19 * 16)))


def trained(data, folder, *, method=None, validation=None, **changes):
    program = cnn()
    settings = dataclasses.replace(SETTINGS, **changes)
    method = method or sp.methods.rigl(density=0.2, update_every=10)
    result = train(method, program, data.train, validation or data.validation, settings, folder=folder, key="k")
    return program, result


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [1 / 3, 2 / 3, 1.0, 0.5, 0.0]),
        ("cosine-tail", [1 / 3, 2 / 3, 1.0, 0.1 + 0.9 * (1 + math.cos(0.625 * math.pi)) / 2, 0.1]),
        ("step", [1 / 3, 2 / 3, 1.0, 0.1, 0.01]),
        ("constant", [1 / 3, 2 / 3, 1.0, 1.0, 1.0]),
        ("one-cycle", [1 / 3, 2 / 3, 0.04, 0.04 + 0.96 * 0.5 / 0.7, 0.04]),
    ],
)
def test_learning_rates_by_hand(schedule, expected):
    # Warm-up of 2 steps, then progress 0, 0.5 and 1 at steps 2, 7 and 12.
    settings = Settings(epochs=1, warmup=2, schedule=schedule)
    assert [lr_factor(step, 12, settings) for step in (0, 1, 2, 7, 12)] == pytest.approx(expected)


@pytest.mark.parametrize(("warmup", "said"), [(19, "and the run has 19: .*below 19"), (-1, "from 0 on, found -1")])
def test_a_warm_up_ends_within_the_run(data, tmp_path, warmup, said):
    with pytest.raises(TrainingError, match=said):
        trained(data, tmp_path, method=sp.methods.dense(), epochs=1, warmup=warmup)


def test_resuming_on_a_round_that_replaces_the_step_warns_of_nothing(small, tmp_path):
    # A checkpoint after step 19, the end of an epoch; step 20 is a round, so the first step after resuming is not the optimizer's.
    def stop(row):
        if row["step"] == 20:
            raise KeyboardInterrupt

    options = {"folder": tmp_path, "key": "k"}
    method = sp.methods.rigl(density=0.2, update_every=10)
    arguments = (small.train, small.validation, SMALL)
    with pytest.raises(KeyboardInterrupt):
        train(method, cnn(), *arguments, **options, on_step=stop)
    result = train(method, cnn(), *arguments, **options, resume=True)
    assert result.counts["steps"] == 76 and result.history[0]["step"] == 19


def test_every_step_is_told_with_its_density(small, tmp_path):
    rows = []
    program = cnn()
    method = sp.methods.gmp(density=0.2, start_at=10, stop_at=50, update_every=10)
    train(method, program, small.train, small.validation, SMALL, folder=tmp_path, key="k", on_step=rows.append)
    assert [row["step"] for row in rows] == list(range(1, 77)) and {row["total"] for row in rows} == {76}
    densities = [row["density"] for row in rows]
    assert densities[0] == 1.0 and densities[-1] == program.costs().density == pytest.approx(0.2, abs=1e-5)
    assert len(set(densities)) > 3 and densities == sorted(densities, reverse=True)


def test_early_stop_goes_back_to_the_best_epoch(small, tmp_path):
    x, y = small.validation.batch(torch.arange(len(small.validation)))
    wrong = TensorSamples(x, (y + 1) % 10)  # learning the true labels makes this loss rise from the first epoch on
    program, result = trained(small, tmp_path, batch_size=16, validation=wrong, epochs=8, early_stop=2)
    losses = [row["val_loss"] for row in result.history]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 8
    with torch.no_grad():
        again = float(nn.functional.cross_entropy(program.eval().logits(program(x)), wrong.targets))
    assert again == pytest.approx(losses[best], abs=1e-5)
    assert program.costs().density == pytest.approx(0.2, abs=1e-3)


def test_early_stop_waits_for_the_final_density(small, tmp_path):
    x, y = small.validation.batch(torch.arange(len(small.validation)))
    wrong = TensorSamples(x, (y + 1) % 10)
    method = sp.methods.gmp(density=0.2, start_at=0.1, stop_at=0.6, update_every=5)
    program, result = trained(small, tmp_path, batch_size=16, method=method, validation=wrong, epochs=6, early_stop=1)
    assert len(result.history) >= 4 and program.costs().density == pytest.approx(0.2, abs=1e-3)


def test_bf16_keeps_parameters_in_float32_and_learns(data, tmp_path):
    data = dataclasses.replace(data, train=Subset(data.train, torch.arange(38 * 16)))
    program, result = trained(data, tmp_path, precision="bf16", epochs=2, batch_size=16)
    assert {p.dtype for p in program.parameters()} == {torch.float32}
    assert result.history[-1]["val_accuracy"] > 0.9
    _, full = trained(data, tmp_path / "full", epochs=2, batch_size=16)
    assert full.history[-1]["loss"] != result.history[-1]["loss"], "mixed precision changes the arithmetic"


def test_a_method_s_objective_and_averaging_are_used(small, tmp_path):
    calls = []

    class Counted:
        def init(self):
            return 0

        def observe(self, logits, labels, state, step):
            assert step == state + 1 and not logits.requires_grad
            return step

        def loss(self, logits, labels, state):
            calls.append(state)
            return nn.functional.cross_entropy(logits, labels)

        def readings(self, state):
            return {"seen": state}

    base = sp.methods.rigl(density=0.2, update_every=10, stop_at=0.5)
    method = dataclasses.replace(
        base, objective=lambda total: Counted(), averaging=lambda total: Averaging(total // 2 + 1, 1)
    )
    averaged, result = trained(small, tmp_path / "a", method=method, batch_size=16)
    plain, _ = trained(small, tmp_path / "b", method=base, batch_size=16)
    assert calls == list(range(1, 4 * 19 + 1)) and len(calls) == result.counts["steps"]
    assert [row["readings"]["seen"] for row in result.history] == [row["step"] for row in result.history]
    assert torch.equal(averaged.mask("8.weight"), plain.mask("8.weight")), "the same run until the average is taken"
    assert not torch.equal(averaged.weight("8.weight"), plain.weight("8.weight"))
    assert not averaged.weight("8.weight")[~averaged.mask("8.weight")].any()
    assert result.counts["samples"] == 16 * result.counts["steps"] and result.counts["rounds"] > 0


@pytest.mark.parametrize(
    ("device", "message"), [("gpu0", "should be auto, cpu"), ("cuda:99", "no device 'cuda:99'"), ("mps", "no device")]
)
def test_devices_that_are_not_there(device, message):
    with pytest.raises(TrainingError, match=message):
        find_device(device)


def test_tensors_made_by_the_graph_move_with_the_program():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(x + torch.arange(4, device=x.device) + torch.zeros(x.shape[0], 4))

    program = sp.trace(Positions(), (torch.randn(2, 4),))
    surgery.move(program, torch.device("meta"))
    with torch.no_grad():
        assert program.eval()(torch.randn(2, 4, device="meta")).device.type == "meta"


def test_a_correction_sweeps_is_clipped_after_and_leaves_its_readings(small, tmp_path):
    method = sp.methods.agent(sp.methods.rigl(density=0.2, update_every=10))
    _, result = trained(small, tmp_path, method=method, batch_size=16, clip_gradient_norm=1.0, epochs=3)
    assert [list(row["readings"]) for row in result.history] == [["coefficient"]] * 3
    assert result.history[0]["readings"]["coefficient"] == 0.1 != result.history[-1]["readings"]["coefficient"]
    # 57 steps of which 4 are rounds; refreshes on steps 1, 21 (20 is a round) and 41 (40 is one) look at 19 batches each.
    evaluated = 53 + 3 * 19
    assert result.counts["probes"] == evaluated + 2 * 19
    assert result.counts["backwards"] == 57 + evaluated
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert rows == result.history


def assert_resumes(data, folder, method, settings, step, whole, result):
    """A run that is interrupted at a step ends, when it is resumed, with the weights and the result of the whole run."""

    def stop(row):
        if row["step"] == step:
            raise KeyboardInterrupt

    arguments = (data.train, data.validation, settings)
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        train(method, cnn(), *arguments, folder=folder, key="k", on_step=stop)
    again = cnn()
    resumed = train(method, again, *arguments, folder=folder, key="k", resume=True)
    assert resumed == result
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_an_interrupted_run_of_nested_wrappers_resumes_to_the_same_bits(data, tmp_path):
    data = dataclasses.replace(data, train=Subset(data.train, torch.arange(160)))  # 10 steps an epoch
    base = sp.methods.rigl(density=0.2, update_every=5, stop_at=0.5)
    method = sp.methods.cigl(sp.methods.agent(base, coefficient="layer"), start_at=0.6)
    settings = dataclasses.replace(SMALL, epochs=3, checkpoint_every=5)
    whole, result = trained(data, tmp_path / "a", method=method, epochs=3, checkpoint_every=5, batch_size=16)

    assert_resumes(data, tmp_path / "b", method, settings, 23, whole, result)


@pytest.mark.parametrize("method", [sp.methods.rigl, sp.methods.gmp])
def test_an_interrupted_run_with_compact_weights_resumes_to_the_same_bits(data, tmp_path, method):
    data = dataclasses.replace(data, train=Subset(data.train, torch.arange(160)))  # 10 steps an epoch
    method = method(density=0.5, pattern="grouped:4", update_every=3)
    settings = dataclasses.replace(SMALL, epochs=2, checkpoint_every=5, compact="always")
    changes = {"epochs": 2, "checkpoint_every": 5, "batch_size": 16, "compact": "always"}
    whole, result = trained(data, tmp_path / "a", method=method, **changes)
    assert any(form.startswith("compact") for form in result.forms.values())

    assert_resumes(data, tmp_path / "b", method, settings, 17, whole, result)


def test_averaging_and_early_stop_exclude_each_other(data, tmp_path):
    method = sp.methods.averaged(sp.methods.rigl(density=0.2, update_every=10))
    with pytest.raises(TrainingError, match="Leave early-stop out"):
        trained(data, tmp_path, method=method, early_stop=2)


def test_batches_for_batch_norm_come_in_mixed_order(data):
    rows = TensorSamples(torch.arange(640.0).view(640, 1), torch.arange(640) // 64)
    batches = list(Batches(rows, SETTINGS, torch.device("cpu")).inputs())
    assert len(batches) == 10 and all(float(batch.std()) > 100 for batch in batches)
