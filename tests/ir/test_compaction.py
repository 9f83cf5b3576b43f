"""Weights stored compact: outputs, gradients, dense gradients of taps, state dicts, and the way back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.errors import PassError
from sparsify.ir import Program, trace
from sparsify.ir.compact import ProductTap
from sparsify.ir.compaction import choose_layouts, grouped_patterns, obstacles, store
from sparsify.ir.sites import layouts, positions_of
from sparsify.passes import Pipeline
from tests.cases import digits


class Net(nn.Module):
    """Layers of every kind that can be compact: padding by numbers and by name, with and without bias, one called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.conv = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.same = nn.Conv2d(32, 32, 3, padding="same", dilation=2, bias=False)
        self.wide = nn.Linear(512, 64)
        self.twice = nn.Linear(64, 64, bias=False)
        self.tokens = nn.Linear(32, 32)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = torch.relu(self.same(torch.relu(self.conv(torch.relu(self.stem(x))))))
        x = self.tokens(x.flatten(2).transpose(1, 2)).flatten(1)
        return self.head(torch.relu(self.twice(torch.relu(self.twice(torch.relu(self.wide(x)))))))


def masked(spelling="grouped:16", *, taps=True, lowered=True, hidden=""):
    torch.manual_seed(0)
    program = trace(Net().double(), (digits(2)[0].double(),)).train()
    text = f"insert-masks{{pattern={spelling} density=0.5 allocation=uniform keep-dense=head.weight}}"
    Pipeline.parse(text + (" | insert-gradient-taps" if taps else "")).apply(program)
    with torch.no_grad():
        for name, mask in program.masks().items():
            program.get_parameter(name).mul_(mask)
    if lowered:
        Pipeline.parse("lower-masks").apply(program)
    if hidden:
        Pipeline.parse(hidden).apply(program)
        for site in program.random_mask_sites():
            program.get_buffer(site.visible).bernoulli_(1 - site.rate)
    return program


def compacted(program) -> Program:
    return Pipeline.parse("compact-grouped")(program).train()


def gradients(program):
    for tap in program.taps().values():
        tap.armed = True
    images, target = digits(8)
    program.zero_grad()
    nn.functional.cross_entropy(program(images.double()), target).backward()
    stored = layouts(program)
    masks = program.masks()
    dense = {n: stored[n].scatter(p.grad) if n in stored else p.grad for n, p in program.named_parameters()}
    return {n: g * masks[n] if n in masks else g for n, g in dense.items()}


@pytest.mark.parametrize("hidden", ["", "insert-random-masks{rate=0.3 rescale=true}"])
@pytest.mark.parametrize("lowered", [True, False])
@pytest.mark.parametrize("spelling", ["grouped:16", "grouped:8x4", "grouped:16:learned"])
def test_outputs_and_gradients_are_those_of_the_masked_program(spelling, lowered, hidden):
    before = masked(spelling, lowered=lowered, hidden=hidden)
    after = compacted(before)
    assert set(layouts(after)) == {"conv.weight", "same.weight", "wide.weight", "twice.weight", "tokens.weight"}
    assert after.costs() == before.costs() and after.maskable() == before.maskable()
    want, have = gradients(before), gradients(after)
    for name, gradient in want.items():
        torch.testing.assert_close(have[name], gradient)
    for name, tap in before.taps().items():
        torch.testing.assert_close(after.taps()[name].gradient, tap.gradient)
    images = digits(8)[0].double()
    torch.testing.assert_close(after.eval()(images), before.eval()(images))


def test_the_dense_gradient_sums_over_batches():
    program = compacted(masked())
    images, target = digits(12)
    single = compacted(masked())
    for net, parts in ((program, 6), (single, 1)):
        net.taps()["twice.weight"].armed = True
        for x, y in zip(images.double().chunk(parts), target.chunk(parts), strict=True):
            nn.functional.cross_entropy(net(x), y, reduction="sum").backward()
    torch.testing.assert_close(program.taps()["twice.weight"].gradient, single.taps()["twice.weight"].gradient)


@pytest.mark.parametrize(
    "hidden", ["", "insert-random-masks", "insert-random-masks | lower-masks", "insert-random-masks{weights=w*.weight}"]
)
@pytest.mark.parametrize("taps", [True, False])
@pytest.mark.parametrize("spelling", ["grouped:16", "grouped:16:learned"])
def test_a_clone_is_the_masked_program_again(spelling, taps, hidden, tmp_path):
    before = masked(spelling, taps=taps, lowered="lower" not in hidden, hidden=hidden)
    after = compacted(before)
    assert after.clone().text() == before.text()
    after.save(tmp_path / "program.sparsify")
    loaded = Program.load(tmp_path / "program.sparsify")
    assert loaded.text() == before.text()
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value) and torch.equal(loaded.state_dict()[name], value)


def test_a_state_dict_brings_its_masks_along():
    program, other = compacted(masked()), masked()
    with torch.no_grad():
        for name, mask in other.masks().items():
            mask.copy_(mask.roll(mask.shape[0] // 2, 0) if name != "wide.weight" else torch.ones_like(mask))
            other.get_parameter(name).copy_(torch.rand(mask.shape) * mask)
    program.load_state_dict(other.state_dict())
    program.verify()
    assert "wide.weight" not in layouts(program) and "twice.weight" in layouts(program)
    images = digits(8)[0].double()
    torch.testing.assert_close(program(images), other(images))
    assert all(torch.equal(program.weight(name), other.weight(name)) for name in other.masks())
    with pytest.raises(RuntimeError, match="size mismatch"):
        program.load_state_dict({**other.state_dict(), "twice.weight": torch.rand(3, 3)})


def test_passes_refuse_a_compact_program():
    program = compacted(masked())
    with pytest.raises(PassError, match=r"stores conv\.weight.* compact\. Apply it to program\.clone\(\)"):
        Pipeline.parse("fold-masks").apply(program)
    assert Pipeline.parse("fold-masks")(program).stage.value == "folded"


def test_what_stays_masked_and_why():
    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(64, 64)
            self.grown = nn.Linear(64, 64)

        def forward(self, x):
            return self.grown(x.flatten(1)) @ self.read.weight

    program = trace(Others(), (digits(2)[0],)).train()
    Pipeline.parse("insert-masks{pattern=grouped:16 density=0.5 weights=grown.weight}").apply(program)
    assert obstacles(program) == {}
    plain = Pipeline.parse("insert-masks{density=0.5 weights=grown.weight}")(trace(Others(), (digits(2)[0],)))
    assert obstacles(plain) == {"grown.weight": "its pattern is unstructured, not grouped"}
    hidden = Pipeline.parse("insert-random-masks")(program)
    assert obstacles(hidden) == {}
    Pipeline.parse("insert-gradient-taps").apply(hidden)  # now the tap is between the two masks
    reason = "%apply_random_mask reads it, which is neither a linear layer nor a convolution"
    assert obstacles(hidden) == {"grown.weight": reason}


def test_the_choice_by_hand():
    """Convolutions of 4 x 4 pixels are faster compact, linear layers of 1 to 16 rows a sample are not; some masks have no layout."""
    program = masked("grouped:32")
    patterns, positions = grouped_patterns(program), positions_of(program)
    assert positions == {"conv.weight": 16, "same.weight": 16, "wide.weight": 1, "twice.weight": 2, "tokens.weight": 16}
    assert list(choose_layouts(program, patterns, None)) == [*positions]
    assert list(choose_layouts(program, patterns, positions)) == ["conv.weight", "same.weight"]
    for name, value in (("same.weight", True), ("twice.weight", False), ("wide.weight", True)):
        program.mask(name)[32 * (name == "wide.weight") :].fill_(value)  # only the second of two groups of wide.weight
    assert list(choose_layouts(program, patterns, None)) == ["conv.weight", "tokens.weight"]
    assert list(choose_layouts(program, {"same.weight": patterns["same.weight"]}, positions)) == []
    (log,) = Pipeline.parse("compact-grouped{form=auto}").apply(program)
    assert log.changed == list(layouts(program)) == ["conv.weight"]
    irregular = "its groups do not each read the same number of inputs, fewer than all"
    slower = "with 16 of 32 inputs, a step is predicted to be no faster"
    assert log.skipped == [
        *((name, irregular) for name in ("same.weight", "wide.weight", "twice.weight")),
        ("tokens.weight", slower),
    ]


def test_a_parameter_of_another_shape_while_an_old_loss_is_alive():
    weight = nn.Parameter(torch.rand(4, 6))
    old = (torch.rand(2, 6) @ weight.T).sum()
    old.backward()
    store(weight, torch.rand(4, 3))
    assert weight.grad is None
    (torch.rand(2, 3) @ weight.T).sum().backward()
    assert weight.grad.shape == (4, 3) and old.grad_fn is not None


@pytest.mark.parametrize(
    ("factor", "bounded", "finite"), [(1.0, True, True), (1e20, False, True), (1e30, False, False)]
)
def test_what_is_known_of_a_dense_gradient_before_it_is_computed(factor, bounded, finite):
    program = trace(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2)), (torch.rand(2, 16),)).train()
    Pipeline.parse("insert-masks{pattern=grouped:8 density=0.5 keep-dense=1.weight} | insert-gradient-taps").apply(
        program
    )
    program = compacted(program)
    tap = program.taps()["0.weight"]
    assert isinstance(tap, ProductTap)
    tap.armed = True
    x = torch.zeros(4, 16)
    x[0, 0], x[1, 1] = factor, 1.0
    program(x).backward(torch.tensor([[1.0 if finite else factor], [factor], [0.0], [0.0]]).expand(4, 2))
    assert tap.is_bounded() == bounded
    assert bool(tap.gradient.isfinite().all()) == finite
