"""NDSNN: counts by hand, budgets at both ends, the reduction to GraNet, and layers of spiking neurons that never fire."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import AllocationError, RecipeError, TrainingError
from sparsify.methods.registry import options as known_options
from sparsify.parts.allocation import Layer, erk, global_magnitude, lamp, uniform
from sparsify.parts.schedules import cubic
from sparsify.parts.scores import by_gradient, magnitude
from sparsify.parts.topology import DropAndGrow, InTurn, Prune, counts
from sparsify.training.selection import shapes_of
from tests.cases import cnn, digits
from tests.methods.one_layer import OneLayer
from tests.methods.spiking import spiking

WEIGHTS = [[0.1, -0.2, 0.3, -0.4, 0.5], [-0.6, 0.7, -0.8, 0.9, -1.0]]
MASK = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
GRADIENT = [[0.0, 9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 5.0, 1.0]]


def by_hand(steps: int, **options) -> OneLayer:
    given = {"update_every": 2, "stop_at": 4, "drop_fraction": 1.0, "initial_density": 0.8, **options}
    layer = OneLayer(sp.methods.ndsnn(density=0.5, **given), WEIGHTS, total_steps=6)
    layer.set_mask(MASK)
    layer.optimizer.param_groups[0]["momentum"] = 0.9
    for step in range(1, steps + 1):
        layer.step(GRADIENT if step == 2 else [[1.0] * 5] * 2)
    return layer


def momentum(layer: OneLayer) -> torch.Tensor:
    return next(iter(layer.optimizer.state.values()))["momentum_buffer"]


def test_a_round_drops_five_and_grows_two():
    # On step 2 of 4, 1/8 of the way is left: round(5 + 3 / 8) = 5 of the eight stay. The fraction is 0.05 + 0.475 (1 + cos(pi / 2)) =
    # 0.525 of eight, rounded up: five are dropped, 0.1 to 0.5, and two are grown, those of gradients 9 and 5. The first was just dropped.
    layer = by_hand(2)
    assert layer.mask.int().tolist() == [[0, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    torch.testing.assert_close(layer.weight, torch.tensor([[0.0] * 5, [-0.6, 0.7, -0.8, 0.0, 0.0]]))
    assert momentum(layer)[1, :3].all() and not momentum(layer)[0].any() and not momentum(layer)[1, 3:].any()
    assert layer.trainer.grown == {"weight": 2}


def test_what_is_dropped_and_grown_again_may_keep_its_value():
    layer = by_hand(2, restart_regrown=False)
    assert layer.mask.int().tolist() == [[0, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    torch.testing.assert_close(layer.weight, torch.tensor([[0.0, -0.2, 0.0, 0.0, 0.0], [-0.6, 0.7, -0.8, 0.0, 0.0]]))
    assert momentum(layer)[0, 1] != 0 and layer.trainer.grown == {"weight": 1}


def test_without_regrowing_no_more_are_dropped_than_others_replace():
    # Five would be dropped and two are to grow: the two that were inactive.
    layer = by_hand(2, regrow_dropped=False)
    assert layer.mask.int().tolist() == [[0] * 5, [1] * 5]


def test_the_last_round_is_at_the_end_of_the_curve_whatever_the_interval():
    # On step 4, 0.05 of five, rounded up: one is exchanged, and the budget is 5. Then masks stay.
    layer = by_hand(4)
    assert int(layer.mask.sum()) == 5 and layer.trainer.counts["rounds"] == 2
    odd = by_hand(6, update_every=3)
    assert odd.trainer.counts["rounds"] == 2 and odd.trainer.density == 0.5  # steps 3 and 4


def test_a_budget_that_falls_faster_than_the_fraction_asks():
    # 0.05 of eight, rounded up, is one; the budget asks for three. Nothing is left to grow.
    layer = by_hand(2, drop_fraction=0.05)
    assert layer.mask.int().tolist() == [[0, 0, 0, 1, 1], [1, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("start", "end", "rounds", "most"),
    [(0.2, 0.01, 10, 0.34), (0.2, 0.01, 20, 0.19), (0.2, 0.01, 200, 0.021), (0.4, 0.01, 5, 0.63)],
)
def test_the_fraction_that_the_curve_asks_for(start, end, rounds, most):
    """A short run asks for more than the schedule of the fraction gives, so that a round only drops; a long one never does."""
    curve, needed, only_drops = cubic(start, end, start_at=0, stop_at=rounds), [], 0
    for step in range(1, rounds + 1):
        before, after = round(1e6 * curve(step - 1)), round(1e6 * curve(step))
        needed.append(1 - after / before)
        fraction = 0.05 + 0.225 * (1 + math.cos(math.pi * step / rounds))
        dropped, grown = counts(before, 10**6, fraction, target=after)
        assert grown >= 0 and before - dropped + grown == after
        assert (grown == 0) == (needed[-1] >= fraction) or after == before - dropped
        only_drops += grown == 0
    assert max(needed) == pytest.approx(most, abs=0.006)
    assert (only_drops > 0) == (rounds <= 20)


def trained(method, steps, *, program=None, lr=0.05, seed=0, each=None, rate=16):
    """Steps on digits; ``each(trainer)`` is called after every one."""
    x, y = digits(640)
    program = cnn(1).train() if program is None else program
    optimizer = torch.optim.SGD(program.parameters(), lr=lr, momentum=0.9)
    trainer = sp.attach(method, program, optimizer, total_steps=steps, seed=seed)
    for step in range(steps):
        rows = slice(step * rate % 640, step * rate % 640 + rate)
        trainer.loss(program(x[rows]), y[rows]).backward()
        trainer.step()
        optimizer.zero_grad()
        if each is not None:
            each(trainer)
    return trainer


@pytest.mark.parametrize("allocation", [erk, uniform])
def test_every_layer_follows_its_own_curve(allocation):
    method = sp.methods.ndsnn(
        density=0.05, initial_density=0.6, update_every=3, initial_allocation=erk, allocation=allocation
    )
    program, found = cnn(1).train(), []
    trained(
        method,
        40,
        program=program,
        each=lambda t: found.append({n: int(m.sum()) for n, m in t.program.masks().items()}),
    )
    layers = shapes_of({n: sp.parts.patterns.Unstructured() for n in program.masks()}, program.masks())
    first, last = erk(layers, 0.6), allocation(layers, 0.05)
    for step, active in enumerate(found, 1):
        at = 30 if step >= 30 else step - step % 3
        left = 0.0 if at == 30 else (1 - at / 30) ** 3
        assert active == {n: round(last[n] + (first[n] - last[n]) * left) for n in layers}, step
    assert sum(found[-1].values()) == round(0.05 * sum(layer.size for layer in layers.values()))
    if allocation is uniform:
        assert any(last[n] < erk(layers, 0.05)[n] for n in layers)


@pytest.mark.parametrize("steps", [5, 12, 40])
def test_one_percent_in_a_short_run(steps):
    trainer = trained(sp.methods.ndsnn(density=0.01), steps)
    costs = trainer.program.costs()
    assert costs.active == round(0.01 * costs.maskable)
    assert all(bool(mask.any()) for mask in trainer.program.masks().values())


def test_the_mean_density_is_that_of_the_steps():
    before = [sp.methods.ndsnn(density=0.1).initial_density]
    trainer = trained(sp.methods.ndsnn(density=0.1), 60, each=lambda t: before.append(t.density))
    assert trainer.savings.mean_density == pytest.approx(sum(before[:-1]) / 60, abs=1e-3)
    assert trainer.savings.to_dict()["mean_density"] > 0.15


@pytest.mark.parametrize(("density", "mean"), [(0.1, 0.159), (0.05, 0.119), (0.02, 0.095), (0.01, 0.087)])
def test_the_mean_density_of_the_schedule(density, mean):
    """30 epochs of 19 steps, a round every 10 until 75 %: means that a separate program measured in such runs."""
    budgets, total, found = sp.methods.ndsnn(density=density, update_every=10).topology(570).budgets, 570, 0.0
    for step in range(total):  # the step after ``step`` has the masks of the last round
        found += budgets.density_at(step - step % 10 if step < 428 else 428)
    assert found / total == pytest.approx(mean, abs=1.5e-3)


# --- the reduction to GraNet


def as_granet(ndsnn: sp.Method, total: int, shape: tuple[int, ...]) -> sp.Method:
    """The same rounds as a pruning to the budget, then an exchange of the share of it that NDSNN drops beyond the difference."""
    move = ndsnn.topology(total)
    budgets, steps = move.budgets, [step for step in range(1, total + 1) if move.when(step)]
    at = {budgets.density_at(step): step for step in steps}
    maskable = math.prod(shape)
    now, fractions = round(maskable * budgets.initial_density), {}
    for step in steps:
        after = budgets.at(step, {"": Layer(shape)})[""]
        _, grown = counts(now, maskable, move.fraction(step), target=after)
        fractions[step] = (grown + 0.5) / after
        assert fractions[step] == pytest.approx(max(0.0, 1 - (1 - move.fraction(step)) * now / after), abs=1.5 / after)
        now = after

    def allocation(layers, density):
        return budgets.at(at[density], {n: Layer(x.shape) for n, x in layers.items()})

    prune = Prune(magnitude(), budgets.density_at, move.when, allocation)
    grow_by = by_gradient(when_silent="random")
    exchange = DropAndGrow(magnitude(), grow_by, fractions.__getitem__, move.when, restart_regrown=True)
    return sp.Method(
        name="granet by hand", density=ndsnn.density, initial="random", initial_density=ndsnn.initial_density, keep_dense=ndsnn.keep_dense,
        topology=lambda _: InTurn((prune, exchange)),
    )  # fmt: skip


def masks_and_weights(found: list) -> object:
    def each(trainer) -> None:
        found.append({n: v.clone() for n, v in trainer.program.state_dict().items()})

    return each


@functools.cache
def traced(steps: int) -> sp.Program:
    return sp.trace(spiking(steps), (digits(2)[0],))


@pytest.mark.parametrize("steps", [0, 1, 3], ids=["relu", "one-time-step", "three-time-steps"])
@pytest.mark.parametrize("density", [0.3, 0.02])
def test_it_is_a_pruning_and_an_exchange_bit_for_bit(steps, density):
    program, name = (traced(steps), "second.weight") if steps else (cnn(1), "8.weight")
    dense = tuple(site.name for site in program.maskable() if site.name != name)
    assert name in {site.name for site in program.maskable()}
    size = program.weight(name).numel()
    ndsnn = sp.methods.ndsnn(density=density, initial_density=0.5, update_every=2, keep_dense=dense)
    found, other = [], []
    ours = trained(ndsnn, 24, program=program.clone().train(), each=masks_and_weights(found))
    theirs = trained(
        as_granet(ndsnn, 24, tuple(program.weight(name).shape)),
        24,
        program=program.clone().train(),
        each=masks_and_weights(other),
    )
    assert ours.counts["rounds"] == theirs.counts["rounds"] == 9
    assert ours.program.costs().active == round(density * size)
    for step, (have, want) in enumerate(zip(found, other, strict=True), 1):
        for key, value in want.items():
            assert torch.equal(have[key], value), (step, key)
    assert not torch.equal(found[0][f"{name}_mask"], found[-1][f"{name}_mask"])


def test_without_exchange_it_is_granet_without_exchange():
    # Both densities are whole numbers of 1/1024, so that it makes no difference at which end numbers are rounded.
    dense = tuple(site.name for site in cnn(1).maskable() if site.name != "8.weight")
    given = {
        "density": 0.125,
        "initial_density": 0.5,
        "update_every": 2,
        "drop_fraction": 0.0,
        "drop_fraction_end": 0.0,
        "keep_dense": dense,
    }
    found, other = [], []
    trained(sp.methods.ndsnn(**given, stop_at=18), 24, each=masks_and_weights(found))
    trained(sp.methods.granet(**given, prune_until=18, allocation=erk), 24, each=masks_and_weights(other))
    assert all(
        torch.equal(have[key], value) for have, want in zip(found, other, strict=True) for key, value in want.items()
    )


# --- layers that never fire


@pytest.mark.parametrize("name", ["ndsnn", "rigl", "granet", "itop", "srigl"])
@pytest.mark.parametrize("when_silent", ["order", "random"])
def test_growth_behind_a_silent_layer(name, when_silent):
    x, y = digits(64)
    program = traced(2).clone().train()
    first = {"granet": 0.05, "ndsnn": 0.05}.get(name)
    given = {
        "density": 0.05,
        "update_every": 2,
        "drop_fraction": 0.5,
        "when_silent": when_silent,
        "regrow_dropped": False,
    }
    given |= {"initial_density": first} if first else {}
    given = {key: value for key, value in given.items() if key in known_options(name)}
    optimizer = torch.optim.SGD(program.parameters(), lr=0.05)
    trainer = sp.attach(sp.methods.build(name, given), program, optimizer, total_steps=100)
    with torch.no_grad():
        program.weight("second.weight").abs_().neg_()  # inhibits: no neuron of the layer can fire
    before = program.mask("last.weight").clone()
    for _ in range(2):
        nn.functional.cross_entropy(program(x), y).backward()
        assert not program.get_parameter("last.weight").grad.any()
        assert program.get_parameter("second.weight").grad.any()
        trainer.step()
        optimizer.zero_grad()
    assert trainer.counts["rounds"] == 1
    assert trainer.readings() == ({"grown_at_random": 1.0} if when_silent == "random" else {})
    if name == "srigl":
        return
    grown = (program.mask("last.weight") & ~before).flatten()
    number, free = int(grown.sum()), (~before).flatten().nonzero()[:, 0]
    assert number >= 4
    in_order = grown.nonzero()[:, 0].tolist() == free[:number].tolist()
    assert in_order == (when_silent == "order")


@pytest.mark.parametrize(
    "name", ["static", "one-shot", "gmp", "set", "rigl", "itop", "dst-ee", "srigl", "granet", "ndsnn", "imp"]
)
def test_every_method_trains_a_network_with_a_silent_layer(name):
    program = traced(2).clone().train()
    given = {"density": 0.05, **({"update_every": 4} if "update_every" in known_options(name) else {})}
    if name == "ndsnn":
        given["initial_density"] = 0.06
    with torch.no_grad():
        program.weight("second.weight").abs_().neg_()
    before = program.weight("last.weight").detach().clone()
    given |= {"initial_scale": "none"} if name == "srigl" else {}
    trainer = trained(sp.methods.build(name, given), 24, program=program, lr=0.0)
    unit = 48 if name == "srigl" else 1
    assert abs(program.costs().active - round(0.05 * program.costs().maskable)) < unit
    assert all(bool(mask.any()) for mask in program.masks().values())
    assert bool(torch.isfinite(program.weight("last.weight")).all())
    kept = program.weight("last.weight").detach()
    assert torch.equal(kept[kept != 0], before[kept != 0])
    assert trainer.counts["skipped_rounds"] == trainer.counts["skipped_steps"] == 0
    assert trainer.readings().get("grown_at_random", 0.0) == (5.0 if name == "ndsnn" else 0.0)


def test_a_saved_count_of_random_growth_goes_on():
    x, y = digits(64)

    def started() -> tuple:
        program = traced(2).clone().train()
        optimizer = torch.optim.SGD(program.parameters(), lr=0.0)
        return program, sp.attach(
            sp.methods.rigl(density=0.05, update_every=2, when_silent="random"), program, optimizer, total_steps=40
        )

    def run(program, trainer, steps) -> None:
        for _ in range(steps):
            nn.functional.cross_entropy(program(x), y).backward()
            trainer.step()
            program.zero_grad()

    (whole, first), (resumed, second) = started(), started()
    run(whole, first, 7)
    resumed.load_state_dict(whole.state_dict())
    second.load_state_dict(first.state_dict())
    count = first.readings()["grown_at_random"]
    assert second.readings() == {"grown_at_random": count} and count > 0
    run(whole, first, 5)
    run(resumed, second, 5)
    assert first.readings() == second.readings() and first.readings()["grown_at_random"] > count
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in resumed.state_dict().items())


# --- options


def test_the_density_at_the_start():
    assert sp.methods.ndsnn(density=0.01).initial_density == 0.4
    assert sp.methods.ndsnn(density=0.5).initial_density == 0.5
    assert sp.methods.ndsnn(density=0.25, pattern="nm:1:4").initial_density == 0.25


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"initial_density": 0.05}, "initial_density should be between the final density 0.1 and 1, found 0.05"),
        ({"drop_fraction": 1.5}, "drop_fraction should be between 0.0 and 1.0, found 1.5"),
        ({"drop_fraction_end": -0.1}, "drop_fraction_end should be between 0.0 and 1.0, found -0.1"),
        ({"when_silent": "noise"}, "when_silent should be order or random, found 'noise'"),
        ({"normalise": "rows"}, "normalise should be none or outputs or inputs or both, found 'rows'"),
        ({"stop_at": 0}, "stop_at should be a number of steps from 1 on"),
    ],
)
def test_options_out_of_range_are_refused(given, said):
    with pytest.raises(RecipeError, match=said.replace(".", r"\.")):
        sp.methods.ndsnn(density=0.1, **given)


def test_random_growth_is_refused_an_option_of_gradients():
    with pytest.raises(RecipeError, match="when_silent is for growth by gradient, and growth is 'random'"):
        sp.methods.itop(density=0.1, growth="random", when_silent="random")


@pytest.mark.parametrize("allocation", [global_magnitude, lamp])
def test_budgets_that_would_depend_on_weights_are_refused_before_training(allocation):
    program = cnn(1).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    with pytest.raises(AllocationError, match=r"ranking by magnitude needs the values of .* Use erk or uniform"):
        sp.attach(sp.methods.ndsnn(density=0.1, allocation=allocation), program, optimizer, total_steps=20)
    assert not program.masks()


def test_a_curve_that_ends_after_the_run_is_refused():
    program = cnn(1).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    with pytest.raises(TrainingError, match="would end at density"):
        sp.attach(sp.methods.ndsnn(density=0.1, stop_at=40, update_every=5), program, optimizer, total_steps=20)


def test_a_masked_program_of_the_density_of_the_start_is_taken():
    program = sp.Pipeline.parse("insert-masks{density=0.3 allocation=erk}")(cnn(1)).train()
    with pytest.raises(
        TrainingError, match=r"begins with 0\.4: masks stay as they are at first\. Attach with initial_density=0\.[23]"
    ):
        trained(sp.methods.ndsnn(density=0.1), 20, program=program.clone().train())
    trainer = trained(sp.methods.ndsnn(density=0.1, initial_density=0.3), 20, program=program)
    assert trainer.program.costs().active == round(0.1 * trainer.program.costs().maskable)
