"""IMP by hand: trainings of equal length, densities down a ladder, weights and learning rate back to an early step."""

from __future__ import annotations

import pytest
import torch

from sparsify.errors import RecipeError
from sparsify.loading import digits_cnn, load_data
from sparsify.methods import imp
from sparsify.methods.iterative_magnitude import ladder, trainings
from sparsify.parts.topology import Rewinding
from sparsify.training import Settings, train
from sparsify.training.settings import lr_factor
from tests.methods.one_layer import OneLayer

WEIGHTS = [[0.1, -0.2, 0.3, -0.4, 0.5], [-0.6, 0.7, -0.8, 0.9, -1.0]]


def test_densities_go_down_a_ladder_that_ends_where_asked():
    assert ladder(0.5, 0.2) == pytest.approx([0.8, 0.64, 0.512, 0.5])
    assert ladder(0.512, 0.2) == pytest.approx([0.8, 0.64, 0.512])
    assert len(ladder(0.1, 0.2)) == 11
    assert ladder(0.1, 0.9) == ladder(0.1, 1.0) == [0.1]


def test_trainings_are_equally_long():
    # Three prunings, rewinding to a quarter of a training: T + 3 (3 / 4) T = 52 gives T = 16, so the early state is that of step 4.
    assert trainings(52, 3, 0.25) == (4, (16, 28, 40))
    assert trainings(52, 3, 4) == (4, (16, 28, 40))
    assert trainings(40, 3, 0.0) == trainings(40, 3, 0) == (0, (10, 20, 30))
    plan = Rewinding(save_at=4, at=(16, 28, 40))
    assert [plan.position(step, 52) for step in (0, 15, 16, 27, 28, 51, 52)] == [
        (0, 16), (15, 16), (4, 16), (15, 16), (4, 16), (15, 16), (16, 16)
    ]  # fmt: skip


def test_weights_go_back_to_the_early_state_on_what_is_left():
    # lr 0.1, gradient 1 everywhere: each step takes 0.1 from every active weight. Trainings of 4 steps, the early state after the first.
    method = imp(density=0.25, prune_fraction=0.5, rewind_to=0.25)
    layer = OneLayer(method, [[0.9, 1.0, -0.35, -0.5]], total_steps=10, lr=0.1)
    early = [0.8, 0.9, -0.45, -0.6]
    for step in range(1, 11):
        layer.step([[1.0] * 4])
        if step == 1:
            assert layer.weight[0].tolist() == pytest.approx(early)
        if step == 4:  # 0.5, 0.6, -0.75, -0.9 at the end: the last two stay, though at the start they were the smallest
            assert layer.mask.int().tolist() == [[0, 0, 1, 1]]
            assert layer.weight[0].tolist() == pytest.approx([0.0, 0.0, -0.45, -0.6])
        if step == 7:
            assert layer.mask.int().tolist() == [[0, 0, 0, 1]]
            assert layer.weight[0].tolist() == pytest.approx([0.0, 0.0, 0.0, -0.6])
    assert layer.weight[0].tolist() == pytest.approx([0.0, 0.0, 0.0, -0.9])
    assert layer.trainer.counts["rounds"] == 2


def test_rewinding_the_learning_rate_alone_leaves_the_weights():
    method = imp(density=0.25, prune_fraction=0.5, rewind_to=0.25, rewind="learning-rate")
    layer = OneLayer(method, [[0.9, 1.0, -0.35, -0.5]], total_steps=10, lr=0.1)
    for _ in range(4):
        layer.step([[1.0] * 4])
    assert layer.weight[0].tolist() == pytest.approx([0.0, 0.0, -0.75, -0.9])
    assert layer.trainer.state_dict()["early"] == {}
    assert [layer.trainer.position(step) for step in (3, 4, 6, 7)] == [(3, 4), (1, 4), (3, 4), (1, 4)]


def test_the_original_tickets_go_back_to_the_first_weights():
    layer = OneLayer(imp(density=0.3, prune_fraction=0.7, rewind_to=0), WEIGHTS, total_steps=10, lr=0.1)
    for _ in range(5):
        layer.step([[-1.0] * 5] * 2)
    # 0.6 to 1.0 in the first row and -0.1 to 0.4 at the end: 0.8, 0.9, 1.0 of the first row and 1.2, 1.4 of the second; three stay.
    assert layer.mask.int().tolist() == [[0, 0, 0, 0, 1], [0, 1, 0, 1, 0]]
    assert torch.equal(layer.weight, torch.tensor(WEIGHTS) * layer.mask)


def test_biases_norms_and_the_optimizer_go_back_too():
    from tests.training.test_state import one_step, started

    program, optimizer, trainer = started(imp(density=0.5, prune_fraction=0.5, rewind_to=3), total=13)
    kept = {}
    for step in range(1, 9):
        one_step(program, optimizer, trainer)
        if step == 3:
            kept = {name: value.clone() for name, value in program.state_dict().items()}
        if step == 7:
            assert not torch.equal(kept["1.running_mean"], program.state_dict()["1.running_mean"])
        if step == 8:
            assert not optimizer.state
            for name, value in program.state_dict().items():
                expected = kept[name] * program.mask(name) if name in program.masks() else kept[name]
                assert name.endswith("_mask") or torch.equal(value, expected), name


def test_the_command_s_learning_rate_starts_over_with_each_training(tmp_path):
    data = load_data("digits", seed=0)
    import sparsify as sp

    settings = Settings(epochs=4, lr=0.1, schedule="cosine", checkpoint_every=1000)
    program = sp.trace(digits_cnn(), (data.example(),))
    method = imp(density=0.25, prune_fraction=0.5, rewind_to=4)
    result = train(method, program, data.train, data.validation, settings, folder=tmp_path, key="k")
    # 76 steps: 4, and three trainings of 24 more. Epochs end on steps 19, 38, 57 and 76: 19, 14, 9 and 28 steps into theirs.
    rates = [0.1 * lr_factor(step, 28, settings) for step in (19, 14, 9, 28)]
    assert [row["lr"] for row in result.history] == pytest.approx(rates)
    assert [row["density"] for row in result.history] == pytest.approx([1.0, 0.5, 0.25, 0.25], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewind_to": 1.0}, r"rewind_to = 1\.0 does not say"),
        ({"rewind_to": -1}, "found -1"),
        ({"rewind_to": 19}, "20 steps do not hold 4 prunings with a rewinding to step 19"),
        ({"prune_fraction": 0.01}, "20 steps do not hold 69 prunings"),
        ({"prune_fraction": 0.0}, "prune_fraction should be between"),
        ({"rewind": "optimizer"}, "rewind should be weights or learning-rate, found 'optimizer'"),
    ],
)
def test_runs_that_do_not_fit(options, message):
    with pytest.raises(RecipeError, match=message):
        OneLayer(imp(density=0.5, **options), WEIGHTS, total_steps=20)
