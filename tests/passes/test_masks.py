"""Masks, lowering, taps and folding, bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from sparsify import attach, methods
from sparsify.errors import AllocationError, PassError, PatternError, SparsityWarning
from sparsify.ir import Program, trace
from sparsify.ir.nodes import masked_view
from sparsify.parts.patterns import parse_pattern
from sparsify.passes import Pipeline, dump_to, print_diff
from tests.cases import CASES, digits, mlp


def gradients(program, args):
    program.train()
    torch.manual_seed(5)
    loss = program.logits(program(*args)).square().mean()
    parameters = dict(program.named_parameters())
    return loss, dict(
        zip(parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), strict=True)
    )


def sparse(case):
    program = Pipeline.parse("insert-masks{density=0.3}")(case.trace())
    with torch.no_grad():
        for name, mask in program.masks().items():
            program.weight(name).mul_(mask)
    return program


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_lowering_changes_no_bit_of_outputs_or_gradients(case):
    reference = sparse(case)
    lowered = Pipeline.parse("insert-gradient-taps | lower-masks")(reference)
    want, want_grads = gradients(reference, case.args)
    have, have_grads = gradients(lowered, case.args)
    assert torch.equal(want, have)
    for name, value in want_grads.items():
        assert (value is None) == (have_grads[name] is None)
        assert value is None or torch.equal(value, have_grads[name]), name


def test_a_tap_records_the_dense_gradient_against_finite_differences():
    case = CASES[0]
    program = Pipeline.parse("insert-gradient-taps")(sparse(case)).double()
    x = case.args[0].double()
    object.__setattr__(program, "input_specs", tuple(type(s)(s.name, s.shape, "float64") for s in program.input_specs))
    name = "1.weight"
    tap, weight, mask = program.taps()[name], program.weight(name), program.mask(name)
    tap.armed = True
    program.logits(program(x)).square().mean().backward()
    tap.armed = False
    index = tuple((~mask).nonzero()[0].tolist())

    def loss(shift: float) -> float:
        with torch.no_grad():
            weight[index] += shift
            mask[index] = True
            value = float(program.logits(program(x)).square().mean())
            weight[index] -= shift
            mask[index] = False
        return value

    numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert tap.gradient is not None and weight.grad is not None
    assert abs(float(tap.gradient[index]) - numeric) < 1e-6
    assert not weight.grad[index]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("pattern", ["unstructured", "block:2x1"])
def test_one_shot_masks_have_the_exact_budget_and_survive_folding(case, pattern):
    program = case.trace()
    masked = Pipeline.parse(f"insert-masks{{density=0.25 pattern={pattern}}}")(program)
    costs = masked.costs()
    assert abs(costs.active - round(0.25 * costs.maskable)) < parse_pattern(pattern).unit_size((2, 2))
    folded = Pipeline.parse("fold-masks | eliminate-dead-code")(masked)
    zeros = {name: int((folded.weight(name) == 0).sum()) for name in masked.masks()}
    assert zeros == {name: int((~mask).sum()) for name, mask in masked.masks().items()}


@pytest.mark.parametrize("pattern", ["grouped:32", "grouped:32:learned", "block:32x1", "block:1x64", "block:32x64"])
def test_a_mask_of_one_group_or_block_can_be_written(pattern):
    density = 1.0 if pattern == "block:32x64" else 0.5
    text = f"insert-masks{{pattern={pattern} density={density} weights=1.weight}}"
    program = Pipeline.parse(text)(CASES[0].trace())
    state = {name: value.clone() for name, value in program.state_dict().items()}
    program.load_state_dict(state)
    program.mask("1.weight")[0, 0] = not state["1.weight_mask"][0, 0]
    assert int((program.mask("1.weight") != state["1.weight_mask"]).sum()) == 1


def test_two_of_four_along_the_inputs():
    program = CASES[0].trace()
    masked = Pipeline.parse("insert-masks{density=0.5 pattern=nm:2:4}")(program)
    for mask in masked.masks().values():
        assert (mask.reshape(mask.shape[0], -1, 4).sum(-1) == 2).all()


def test_a_pattern_that_does_not_divide_names_the_weight():
    program = CASES[1].trace()
    with pytest.raises(PatternError, match=r"'conv.weight'.*keep-dense"):
        Pipeline.parse("insert-masks{pattern=nm:2:4}")(program)


@pytest.mark.parametrize("density", ["0", "1.2", "-0.1", "nan"])
def test_an_impossible_density_is_refused(density):
    program = CASES[0].trace()
    with pytest.raises(PassError, match=r"\(0, 1\]"):
        Pipeline.parse(f"insert-masks{{density={density}}}")(program)


def test_tied_weights_have_one_mask():
    case = next(c for c in CASES if c.name == "tied")
    program = Pipeline.parse("insert-masks{density=0.5}")(case.trace())
    assert list(program.masks()) == ["first.weight", "head.weight"]
    assert program.costs().maskable == 64 * 64 + 64 * 10


def test_temperature_and_vector_heads_by_hand():
    x, _ = digits()
    program = trace(CASES[0].build(), (x,)).eval()
    logits = program.outputs(x)["logits"]
    warm = Pipeline.parse("attach-calibration-head")(program)
    warm.tensor("calibration.temperature").fill_(2.0)
    assert torch.equal(warm.outputs(x)["probabilities"], torch.softmax(logits / 2, -1))
    assert torch.equal(warm.eval()(x), logits)
    vector = Pipeline.parse("attach-calibration-head{kind=vector}")(program)
    vector.tensor("calibration.bias").copy_(torch.arange(10.0))
    assert torch.equal(vector.outputs(x)["probabilities"], torch.softmax(logits + torch.arange(10.0), -1))


def test_instruments(tmp_path):
    lines: list[str] = []
    program = CASES[0].trace()
    Pipeline.parse("insert-masks | fold-masks").run(program, [print_diff(lines.append), dump_to(tmp_path / "dump")])
    assert "+    %apply_mask = apply_mask(%_1_weight" in lines[0]
    assert {p.name for p in (tmp_path / "dump").iterdir()} == {
        f"{stem}.{suffix}"
        for stem in ("00-insert-masks", "01-fold-masks")
        for suffix in ("before.txt", "after.txt", "diff")
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_lowered_tap_gives_the_same_dense_gradient_recorded_or_left_in_grad(case):
    reference = Pipeline.parse("insert-gradient-taps")(sparse(case))
    lowered = Pipeline.parse("lower-masks")(reference)

    def dense_gradients(program, *, in_grad):
        for tap in program.taps().values():
            tap.armed, tap.in_grad = True, in_grad
        _, grads = gradients(program, case.args)
        return {n: grads[n] if in_grad else tap.gradient for n, tap in program.taps().items()}, grads

    want, masked = dense_gradients(reference, in_grad=False)
    recorded, still_masked = dense_gradients(lowered, in_grad=False)
    left, _ = dense_gradients(lowered.clone(), in_grad=True)
    for name, value in want.items():
        assert value is not None, name
        torch.testing.assert_close((recorded[name], left[name]), (value, value), rtol=0, atol=0)
        assert torch.equal(masked[name], still_masked[name]), name


def test_a_gradient_shared_with_another_branch_is_not_masked_in_place():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.randn(4, 4))
            self.b = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            both = self.a + self.b  # one gradient tensor goes back to a and to b
            return nn.functional.linear(x, self.a) + nn.functional.linear(x, self.b) + both.sum(0)

    program = Pipeline.parse("insert-masks{density=0.5}")(trace(Sum(), (torch.randn(3, 4),)))
    for name, mask in program.masks().items():
        program.weight(name).data.masked_fill_(~mask, 0.0)
    lowered = Pipeline.parse("lower-masks")(program)
    want = gradients(program, (torch.ones(3, 4),))[1]
    have = gradients(lowered, (torch.ones(3, 4),))[1]
    assert want.keys() == have.keys() and all(torch.equal(want[n], have[n]) for n in want if want[n] is not None)


@pytest.mark.parametrize("taps", [True, False])
def test_programs_of_earlier_versions_say_how_a_gradient_is_masked_and_have_the_same(tmp_path, taps):
    steps = "insert-masks{density=0.5}" + (" | insert-gradient-taps" if taps else "")
    program = Pipeline.parse(steps)(trace(mlp(), (digits()[0],)))
    for name, mask in program.masks().items():
        program.weight(name).data.masked_fill_(~mask, 0.0)
    program = Pipeline.parse("lower-masks")(program)
    want = gradients(program, (digits()[0],))[1]
    for phase in program.phases.values():
        for node, form in zip(phase.graph.nodes, itertools.cycle(["in-place", "copied"]), strict=False):
            if (node.target is masked_view and len(node.args) + len(node.kwargs) == 3) or node.op == "call_module":
                node.args = (*node.args, form)
    program.save(tmp_path / "earlier.sparsify")
    read = Program.load(tmp_path / "earlier.sparsify")
    assert "'copied'" in read.text() or "'in-place'" in read.text()
    have = gradients(read, (digits()[0],))[1]
    assert want.keys() == have.keys() and all(torch.equal(want[n], have[n]) for n in want)


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 64, 3, padding=1)
        self.conv = nn.Conv2d(64, 64, 3, padding=1)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.halves = nn.Conv2d(64, 64, 1, groups=2)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = torch.relu(self.halves(self.depthwise(torch.relu(self.conv(torch.relu(self.stem(x)))))))
        return self.head(x.mean((2, 3)))


def test_grouped_masks_pass_over_what_they_do_not_suit_and_say_why():
    program = trace(Wide(), (digits()[0],))
    masked, (log,) = Pipeline.parse("insert-masks{pattern=grouped:32 density=0.25}").run(program)
    assert [(site.weight, site.pattern) for site in masked.mask_sites()] == [("conv.weight", "grouped:32")]
    assert masked.costs().active == 9216
    reasons = dict(log.skipped)
    assert "1 input channels" in reasons["stem.weight"] and "10 outputs" in reasons["head.weight"]
    assert "depthwise" in reasons["depthwise.weight"] and "grouped already" in reasons["halves.weight"]
    with pytest.raises(PatternError, match=r"'head.weight'.*10 outputs"):
        Pipeline.parse("insert-masks{weights=head.weight pattern=grouped:32}")(program)
    with pytest.raises(AllocationError, match=r"conv\.weight 9216 of 36864.*lowest density that works is 0\.25"):
        Pipeline.parse("insert-masks{pattern=grouped:32 density=0.1}")(program)


@pytest.mark.parametrize("name", ["static", "one-shot", "gmp", "set", "rigl"])
def test_every_method_trains_grouped_convolutions(name):
    x, y = digits(32)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    )
    program = trace(net, (x,)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9)
    options = {"density": 0.5, "pattern": "grouped:16", "keep_dense": ("5.weight",)}
    options |= {"update_every": 2} if name in ("gmp", "set", "rigl") else {}
    trainer = attach(methods.build(name, options), program, optimizer, total_steps=12)
    for _ in range(12):
        nn.functional.cross_entropy(program(x), y).backward()
        trainer.step()
        optimizer.zero_grad()
    (site,) = program.mask_sites()
    assert parse_pattern(site.pattern).holds(program.mask(site.weight))
    assert program.costs().active == 9216


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masks_of_half_precision_keep_the_highest_of_every_pattern(dtype):
    torch.manual_seed(0)
    program = trace(nn.Sequential(nn.Linear(16, 8)).to(dtype), (torch.randn(4, 16).to(dtype),))
    whole = trace(nn.Sequential(nn.Linear(16, 8)), (torch.randn(4, 16),))
    with torch.no_grad():
        whole.get_parameter("0.weight").copy_(program.get_parameter("0.weight"))
    for pattern in ("unstructured", "nm:2:4"):
        pipeline = Pipeline.parse(f"insert-masks{{density=0.5 pattern={pattern}}}")
        assert torch.equal(pipeline(program).mask("0.weight"), pipeline(whole).mask("0.weight"))


def test_a_complex_weight_stays_dense_and_says_so():
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Parameter(torch.randn(8, 8, dtype=torch.cfloat))
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head((x.to(torch.cfloat) @ self.filter).abs())

    program = trace(Spectral(), (torch.randn(4, 8),)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    with pytest.warns(SparsityWarning, match=r"filter \(64 weights: its numbers are complex"):
        trainer = attach(methods.rigl(density=0.5, update_every=1), program, optimizer, total_steps=4)
    program(torch.randn(4, 8)).square().sum().backward()
    trainer.step()
    assert list(program.masks()) == ["head.weight"]
    assert {site.name: site.skip for site in program.maskable()} == {
        "filter": "its numbers are complex",
        "head.weight": None,
    }
