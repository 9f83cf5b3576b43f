"""Densities that are split over layers by gradients: what rounds give to allocations, and what classes make of it."""

from __future__ import annotations

import functools
import io

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import AllocationError, RecipeError, TrainingError, TrainingWarning
from sparsify.ir.sites import layouts
from sparsify.parts.allocation import Layers, by_gradient, global_saliency, uniform
from sparsify.training.selection import layers_of
from tests.methods.one_layer import OneLayer
from tests.training.loops import TRACED, X, Y, loss, mlp, run, started, strays
from tests.training.test_compact_weights import STEPS, Loop, adamw, assert_same, sgd

DENSITY = 0.1


def once(**options) -> sp.Method:
    return sp.methods.one_shot(**{"density": DENSITY, "prune_at": 1, "allocation": global_saliency, **options})


def pruned(method: sp.Method, labels: torch.Tensor = Y) -> dict[str, int]:
    """Active positions by weight after one step that moves no weight."""
    program, _, trainer = started(method, make=lambda p: torch.optim.SGD(p, lr=0.0))
    trainer.loss(program(X), labels).backward()
    trainer.step()
    assert strays(program) == 0
    return {name: int(mask.sum()) for name, mask in program.masks().items()}


def counted(loss_of_logits) -> dict[str, int]:
    """The oracle: how many of the best |w g| each weight has, by a sort in eager mode."""
    model = mlp()
    loss_of_logits(model(X)).backward()
    weights = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    flat = torch.cat([(p * p.grad).abs().flatten() for p in weights.values() if p.grad is not None])
    owner = torch.cat([torch.full((p.numel(),), i) for i, p in enumerate(weights.values())])
    best = owner[flat.sort(descending=True, stable=True).indices[: round(DENSITY * len(flat))]]
    return dict(zip(weights, torch.bincount(best, minlength=len(weights)).tolist(), strict=True))


def test_a_round_splits_the_density_by_what_the_loss_loses():
    assert pruned(once()) == counted(lambda logits: nn.functional.cross_entropy(logits, Y))


def weighted(number: int, **options) -> sp.Method:
    """All the weight on one class."""
    return sp.methods.class_weighted(once(**options), weights=[float(k == number) for k in range(10)])


@pytest.mark.parametrize("number", [0, 1, 8])
def test_with_all_the_weight_on_a_class_it_is_split_by_what_that_class_loses(number):
    mine = number == Y
    assert pruned(weighted(number)) == counted(lambda logits: nn.functional.cross_entropy(logits[mine], Y[mine]))


def test_classes_change_the_split_and_magnitudes_do_not():
    splits = {tuple(pruned(weighted(number)).values()) for number in range(10)}
    assert len(splits) == 10 and len({sum(split) for split in splits}) == 1
    fixed = {tuple(pruned(weighted(k, allocation=sp.methods.gmp(density=0.5).allocation)).values()) for k in range(10)}
    assert len(fixed) == 1


def test_multipliers_of_balancing_act_change_the_split():
    recalls = {k: [float(other == k) for other in range(10)] for k in (0, 8)}
    splits = list[dict[str, int]]()
    for dense in recalls.values():
        base = once(prune_at=4)
        method = sp.methods.balancing_act(
            base, dense_recall=dense, constraint="recall", memory=4, start_at=0, dual_rate=5.0
        )
        program, _, trainer = started(method, make=lambda p: torch.optim.SGD(p, lr=0.0))
        for _ in range(4):
            program.zero_grad()
            trainer.loss(program(X), Y).backward()
            trainer.step()
        splits.append({name: int(mask.sum()) for name, mask in program.masks().items()})
    assert splits[0] != splits[1]


def test_the_round_has_the_gradient_of_the_step_at_its_masks():
    seen = list[Layers]()

    @by_gradient
    def noting(layers: Layers, density: float) -> dict[str, int]:
        seen.append(layers)
        return uniform(layers, density)

    method = sp.methods.gmp(density=0.25, start_at=1, stop_at=3, update_every=1, allocation=noting)
    layer = OneLayer(method, [[1.0, 2.0, 3.0, 4.0]], total_steps=4)
    given = [[[1.0, -2.0, 0.5, 4.0]], [[5.0, 6.0, 7.0, 8.0]], [[0.0, -1.0, 0.0, 2.0]], [[1.0, 1.0, 1.0, 1.0]]]
    for gradient in given:
        layer.step(gradient)
    rehearsed, *rounds = (layers["weight"] for layers in seen)
    assert rehearsed.gradient is not None and rehearsed.gradient.tolist() == [[1.0] * 4] and rehearsed.mask is None
    # Pruned positions have a gradient, too, and may not come back.
    assert [found.gradient.tolist() for found in rounds if found.gradient is not None] == given[:3]
    assert [found.mask.tolist() for found in rounds if found.mask is not None][-1][0][0] is False
    assert layer.mask.tolist() == [[False, False, False, True]]


def test_others_get_no_gradient_and_no_taps():
    program, _, _ = started(sp.methods.gmp(density=0.2))
    assert "record_gradient" not in str(program) and all(x.gradient is None for x in layers_of(program).values())
    tapped, _, _ = started(sp.methods.gmp(density=0.2, allocation=global_saliency))
    assert len(str(tapped)) > len(str(program))


# --- gradients that are scaled, do not arrive, or are not finite


def scaled(method: sp.Method, scale: float, factor: float = 1.0):
    program, optimizer, trainer = started(method)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    for _ in range(12):
        scaler.scale(loss(program) * factor).backward()
        scaler.step(trainer)
        scaler.update()
        optimizer.zero_grad()
    return program, trainer


GRADUAL = sp.methods.gmp(density=0.2, update_every=2, allocation=global_saliency)


def test_a_power_of_two_of_a_grad_scaler_changes_no_bit():
    plain, optimizer, trainer = started(GRADUAL)
    run(plain, optimizer, trainer, 12)
    program, _ = scaled(GRADUAL, 2.0**10)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in program.state_dict().items())


def test_the_scale_is_taken_out_of_what_an_allocation_sees():
    seen = list[float]()

    @by_gradient
    def noting(layers: Layers, density: float) -> dict[str, int]:
        seen.append(max(float(x.gradient.abs().max()) for x in layers.values() if x.gradient is not None))
        return uniform(layers, density)

    method = once(allocation=noting)
    pruned(method)
    scaled(method, 2.0**10)
    assert len(seen) == 4 and seen[0] == seen[2] == 1.0 and seen[1] == seen[3]


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_round_whose_gradients_are_not_finite_leaves_the_masks(bad):
    program, optimizer, trainer = started(GRADUAL)
    run(program, optimizer, trainer, 3)
    masks = {name: mask.clone() for name, mask in program.masks().items()}
    with pytest.warns(TrainingWarning, match="gradients of step 4 are not finite"):
        (loss(program) * bad).backward()
        trainer.step()
    assert all(torch.equal(mask, masks[name]) for name, mask in program.masks().items())
    optimizer.zero_grad()
    run(program, optimizer, trainer, 8)
    maskable = program.costs().maskable
    assert trainer.counts["skipped_rounds"] == 1 and program.costs().active == round(0.2 * maskable)


def test_gradients_that_do_not_arrive():
    program, _, trainer = started(once())
    loss(program.eval()).backward()
    program.train()
    with pytest.raises(TrainingError, match=r"no dense gradient reached .* during the forward pass"):
        trainer.step()


def test_a_weight_frozen_later_has_no_part_in_the_split():
    program, optimizer, trainer = started(once(prune_at=2))
    run(program, optimizer, trainer, 1)
    program.weight("3.weight").requires_grad_(False)
    with pytest.warns(TrainingWarning, match=r"3\.weight are frozen since the run began"):
        run(program, optimizer, trainer, 1)
    active = {name: int(mask.sum()) for name, mask in program.masks().items()}
    assert active["3.weight"] == 32 * 24 and active["1.weight"] + active["5.weight"] == round(DENSITY * (2048 + 240))


# --- what is refused before training


@pytest.mark.parametrize("name", ["static", "set", "rigl", "itop", "dst-ee", "srigl"])
def test_masks_before_training_are_refused(name):
    with pytest.raises(
        RecipeError, match=f"method '{name}' starts from random masks, whose density global_saliency cannot"
    ):
        sp.methods.build(name, {"density": 0.2, "allocation": "global_saliency"})


def test_methods_that_start_dense_may_have_it():
    sp.methods.build("rigl", {"density": 0.2, "allocation": "global_saliency", "dense_until": 3})
    sp.methods.build("granet", {"density": 0.2, "allocation": "global_saliency", "initial_density": 0.5})
    with pytest.raises(RecipeError, match="method 'granet' starts from random masks"):
        sp.methods.build("granet", {"density": 0.2, "initial_allocation": "global_saliency", "initial_density": 0.5})
    with pytest.raises(RecipeError, match="starts from magnitude masks"):
        sp.Method(name="own", density=0.2, initial="magnitude", allocation=global_saliency)


def test_an_allocation_of_ones_own_without_the_mark_is_refused_before_training():
    method = sp.methods.gmp(density=0.2, allocation=lambda layers, density: global_saliency(layers, density))
    with pytest.raises(AllocationError, match=r"needs the dense gradient of '1\.weight'; .* marked by .*by_gradient"):
        started(method)
    started(sp.methods.gmp(density=0.2, allocation=functools.partial(global_saliency)))


def test_a_density_that_cannot_be_met_is_refused_before_training():
    with pytest.raises(AllocationError, match="lowest density that works"):
        started(sp.methods.gmp(density=1e-4, allocation=global_saliency))


# --- bits


@pytest.mark.parametrize("name", ["gmp", "class-weighted(gmp)", "imp", "granet", "one-shot"])
def test_a_resumed_run_has_the_same_bits(name):
    options = {"density": 0.2, "allocation": "global_saliency"}
    method = sp.methods.build(name, options | ({"update_every": 2} if name.endswith(("gmp", "gmp)")) else {}))

    def steps(program, optimizer, trainer, count):
        for _ in range(count):
            at = slice(16 * (trainer.steps % 4), 16 * (trainer.steps % 4) + 16)
            trainer.loss(program(X[at]), Y[at]).backward()
            trainer.step()
            optimizer.zero_grad()

    program, optimizer, trainer = started(method, total=24)
    steps(program, optimizer, trainer, 7)
    file = io.BytesIO()
    torch.save([program.state_dict(), optimizer.state_dict(), trainer.state_dict()], file)
    steps(program, optimizer, trainer, 17)
    resumed = started(method, total=24)
    file.seek(0)
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    steps(*resumed, 17)
    want = program.state_dict()
    assert all(torch.equal(value, want[key]) for key, value in resumed[0].state_dict().items())
    assert program.costs().density < 0.21 and TRACED.masks() == {}


@pytest.mark.parametrize("method", ["gmp", "class-weighted(gmp)", "granet"])
def test_compact_weights_have_the_masks_of_masked_training(method):
    compact, masked = (
        Loop(method, "grouped:16", compact=mode, options={"allocation": "global_saliency"}).run()
        for mode in ("always", "never")
    )
    assert any(form.startswith("compact since step") for form in compact.trainer.forms.values())
    for have, want in zip(compact.masks, masked.masks, strict=True):
        assert all(torch.equal(have[name], mask) for name, mask in want.items())
    assert_same(compact, masked)
    assert sum(compact.trainer._rounds.computed.values()) > 0


@pytest.mark.parametrize(
    ("pattern", "optimizer"), [("grouped:16", sgd), ("grouped:16:learned", sgd), ("grouped:8x4", adamw)]
)
@pytest.mark.parametrize("restart", [True, False])
def test_budgets_that_shrink_and_what_grows_again_from_0(pattern, optimizer, restart):
    options = {
        "density": 0.375,
        "initial_density": 0.6,
        "drop_fraction": 0.9,
        "restart_regrown": restart,
        "keep_dense": ("conv.weight",),
    }
    compact, masked = (
        Loop("ndsnn", pattern, optimizer=optimizer, options=options, compact=mode) for mode in ("always", "never")
    )
    assert set(layouts(compact.program)) == {"wide.weight", "twice.weight"} and not layouts(masked.program)
    compact.run(10)
    saved = compact.saved()
    for loop in (compact.run(STEPS - 10), masked.run()):
        assert loop.trainer.density == 0.375 and loop.trainer.savings.mean_density > 0.4
    for have, want in zip(compact.masks, masked.masks, strict=True):
        assert all(torch.equal(have[name], mask) for name, mask in want.items())
    assert compact.masks[0]["wide.weight"].sum() > compact.masks[-1]["wide.weight"].sum()
    assert_same(compact, masked)
    resumed = Loop("ndsnn", pattern, optimizer=optimizer, options=options).load(saved).run(STEPS - 10)
    assert_same(resumed, compact, bits=True)
    assert resumed.trainer.savings == compact.trainer.savings
