"""Programs that have masks already: trained on from them, or refused with what they have and what the method asks for."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import sparsify as sp
from sparsify.errors import TrainingError
from tests.training.loops import TRACED, X, loss, rigl, run, started, strays

ONE_SHOT = sp.Pipeline.parse("insert-masks{density=0.2}")(TRACED)


def trained(method, tmp_path):
    """A program after a run, saved and loaded."""
    program, optimizer, trainer = started(method)
    run(program, optimizer, trainer, 12)
    trainer.finish()
    program.save(tmp_path / "a.sparsify")
    return sp.Program.load(tmp_path / "a.sparsify")


@pytest.mark.parametrize("first", ["static", "rigl", "insert-masks"])
@pytest.mark.parametrize("second", ["static", "rigl", "set", "gmp"])
def test_a_masked_program_is_trained_on_from_its_masks(first, second, tmp_path):
    if first == "insert-masks":
        program = ONE_SHOT.clone()
    else:
        program = trained(sp.methods.build(first, {"density": 0.2}), tmp_path)
    rounds = {} if second == "static" else {"update_every": 3}
    masks = {name: mask.clone() for name, mask in program.masks().items()}
    output = program.eval()(X)
    method = sp.methods.build(second, {"density": 0.2, **rounds})
    program, optimizer, trainer = started(method, program=program)
    assert torch.equal(program.eval()(X), output), "attaching changes no output"
    assert bool(program.taps()) == (first == "rigl" or second == "rigl")
    program.train()
    before = loss(program).item()
    run(program, optimizer, trainer, 12)
    changed = [name for name, mask in masks.items() if not torch.equal(mask, program.mask(name))]
    assert bool(changed) == (second in ("rigl", "set")) and strays(program) == 0
    assert trainer.density == pytest.approx(0.2, abs=1e-3) and loss(program).item() < before
    assert trainer.left_dense == {}
    folded = sp.Pipeline.parse("fold-masks")(program.eval())
    assert torch.equal(folded(X), program(X))


def test_a_program_trained_on_is_the_program_that_was_never_saved(tmp_path):
    method = sp.methods.set(density=0.2, update_every=3)
    whole, optimizer, trainer = started(method)
    run(whole, optimizer, trainer, 12)
    whole.save(tmp_path / "a.sparsify")
    for program in (whole, sp.Program.load(tmp_path / "a.sparsify")):
        program.zero_grad()
        optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
        trainer = sp.attach(method, program.train(), optimizer, total_steps=12, seed=3)
        run(program, optimizer, trainer, 12)
        last = {name: value.clone() for name, value in program.state_dict().items()}
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in last.items())


def test_pruning_goes_on_below_the_density_that_is_there():
    program = sp.Pipeline.parse("insert-masks{density=0.5}")(TRACED)
    masks = {name: mask.clone() for name, mask in program.masks().items()}
    program, optimizer, trainer = started(sp.methods.gmp(density=0.2, update_every=2), program=program)
    run(program, optimizer, trainer, 12)
    assert trainer.density == pytest.approx(0.2, abs=1e-3)
    assert not any(bool((program.mask(name) & ~mask).any()) for name, mask in masks.items()), "nothing was grown"


def test_what_a_second_method_needs_is_added(tmp_path):
    program = trained(sp.methods.static_random(density=0.2), tmp_path)
    method = sp.methods.agent(rigl(), snapshot="running")
    program, optimizer, trainer = started(method, program=program, epoch_steps=6)
    for _ in range(12):
        loss(program).backward()
        trainer.step(lambda: loss(program))
        optimizer.zero_grad()
    assert trainer.counts["rounds"] == 2 and trainer.counts["probes"] > 0 and strays(program) == 0


GROUPED = sp.Pipeline.parse("insert-masks{pattern=block:4x1 density=0.25 keep-dense=5.weight}")(TRACED)


@pytest.mark.parametrize(
    ("method", "program", "message"),
    [
        (
            rigl(density=0.1),
            ONE_SHOT,
            r"density 0\.199935, and method 'rigl' begins with 0\.1.*Attach with density=0\.199935",
        ),
        (sp.methods.dense(), ONE_SHOT, r"begins with 1: .*a method that has no rounds, at density=0\.199935"),
        (
            sp.methods.gmp(density=0.5, update_every=2),
            ONE_SHOT,
            r"density 0\.199935, and method 'gmp' prunes to 0\.5.*below 0\.199935 \(sparsity above 0\.800065",
        ),
        (rigl(density=0.25), GROUPED, r"1\.weight block:4x1.*'rigl' asks for \('unstructured'\).*pattern='block:4x1'"),
        (
            rigl(density=0.25, pattern="block:4x1", keep_dense=("1.*",)),
            GROUPED,
            r"keeps '1\.\*' dense, and program .* has a mask for 1\.weight",
        ),
    ],
)
def test_a_method_that_does_not_fit_the_masks_is_refused_with_both_sides(method, program, message):
    program = program.clone()
    text, values = program.text(), {name: value.clone() for name, value in program.state_dict().items()}
    with pytest.raises(TrainingError, match=message):
        started(method, program=program)
    assert program.text() == text
    assert all(torch.equal(value, values[name]) for name, value in program.state_dict().items())


def test_a_deployed_program_is_not_trained():
    program = sp.Pipeline.parse("deploy")(TRACED)
    with pytest.raises(TrainingError, match=r"is deployed: its training is over.*program\.sparsify of a run"):
        sp.attach(sp.methods.dense(), program, torch.optim.SGD(program.parameters(), lr=0.1), total_steps=3)


def test_weights_without_a_mask_stay_dense_and_are_told_of():
    method = dataclasses.replace(rigl(density=0.25, pattern="block:4x1"), keep_dense=("5.weight",))
    program, optimizer, trainer = started(method, program=GROUPED.clone())
    assert trainer.left_dense == {"5.weight": "the program that was attached has no mask for it"}
    run(program, optimizer, trainer, 12)
    assert program.weight("5.weight").all() and trainer.counts["rounds"] == 2
