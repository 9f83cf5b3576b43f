"""`check_pass` finds each promise that a pass may break: every one has a pass that breaks it and nothing else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from sparsify.errors import PassError
from sparsify.ir import Program, Stage, TensorSpec, surgery
from sparsify.passes import CHANGED, UNCHANGED, Effect, EliminateDeadCode, Kept, Pass, PassLog, Preserves, option
from sparsify.passes.contract import CASES, check_pass, table

aten = torch.ops.aten
FEW = tuple(case for case in CASES if case.name in ("linear", "no_batch", "frozen", "wide_linear"))
FLAT = tuple(case for case in FEW if case.name in ("no_batch", "wide_linear"))


@dataclass(frozen=True)
class Honest(Pass):
    """Lets the logits of the eval phase flow through a clone."""

    name: ClassVar[str] = "honest"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.TRACED, Stage.MASKED, Stage.FOLDED)
    effects: ClassVar[Effect] = Effect.EVAL_GRAPH

    times: int = option(1, "how many clones")

    @property
    def preserves(self):
        return {"train": UNCHANGED, "eval": UNCHANGED}

    def run(self, program):
        log = PassLog(self.name)
        for _ in range(self.times):
            value = returned(program)
            made = surgery.call_after(program, "eval", value, aten.clone.default, (value,))
            surgery.replace_output(program, "eval", program.output_names("eval")[0], made)
            log.change(made.name)
        return self.lie(program, log)

    def lie(self, program, log):
        return log


def returned(program: Program) -> Any:
    """The node of the first output of the eval phase."""
    return program.output_node("eval").args[0][0]  # type: ignore[index]


def broken(cls, *, cases=FEW, **options):
    with pytest.raises(PassError, match="breaks") as caught:
        check_pass(cls(**options), cases=cases)
    return str(caught.value)


def test_an_honest_pass_keeps_its_promises_and_shows_what_it_does():
    rows = check_pass(Honest(), cases=FEW)
    assert {row.case for row in rows} == {case.name for case in FEW}
    made = [row for row in rows if not row.refused]
    assert all(row.changed and row.effects is Effect.EVAL_GRAPH and not row.broken for row in made)
    shown = table(rows)
    assert "4 pairs of a pass and a case: 4 changed, 0 refused, 0 as they were" in shown and "==== E" in shown
    assert check_pass(Honest(times=2), cases=FEW)


class OtherValues(Honest):
    def lie(self, program, log):
        value = returned(program)
        made = surgery.call_after(program, "eval", value, aten.mul.Tensor, (value, 1.5))
        surgery.replace_output(program, "eval", program.output_names("eval")[0], made)
        return log


class Rounds(Honest):
    def lie(self, program, log):
        value = returned(program)
        made = surgery.call_after(program, "eval", value, aten.mul.Tensor, (value, 1.0 + 2e-7))
        surgery.replace_output(program, "eval", program.output_names("eval")[0], made)
        return log


class StopsGradients(Honest):
    """Outputs stay; gradients do not reach the layers."""

    def lie(self, program, log):
        for node in list(program.phases["eval"].graph.nodes):
            if node.target is aten.linear.default:
                surgery.reroute(node, surgery.call_after(program, "eval", node, aten.detach.default, (node,)))
        return log


class TrainsOtherwise(Honest):
    def lie(self, program, log):
        value = program.output_node("train").args[0][0]
        made = surgery.call_after(program, "train", value, aten.mul.Tensor, (value, 2.0))
        surgery.replace_output(program, "train", program.output_names("train")[0], made)
        return log


class Renames(Honest):
    def lie(self, program, log):
        surgery.add_state(program, "added", torch.ones(3))
        return log


class Rewrites(Honest):
    def lie(self, program, log):
        name = next(name for name, _ in program.named_parameters())
        surgery.rewrite(program, name, program.get_parameter(name) * 1.01)
        return log


class Freezes(Honest):
    def lie(self, program, log):
        for parameter in program.parameters():
            parameter.requires_grad_(False)
        return log


class FalseShape(Honest):
    """Writes the batch size down as a number."""

    def lie(self, program, log):
        node = returned(program)
        node.meta["spec"] = TensorSpec(node.name, (4, *node.meta["spec"].shape[1:]), "float32")
        return log


class FalseType(Honest):
    def lie(self, program, log):
        node = returned(program)
        node.meta["spec"] = TensorSpec(node.name, node.meta["spec"].shape, "float64")
        return log


class NoSpec(Honest):
    def lie(self, program, log):
        del returned(program).meta["spec"]
        return log


class SilentLog(Honest):
    def lie(self, program, log):
        return PassLog(self.name)


class Boasts(Honest):
    effects: ClassVar[Effect] = Effect.NONE

    def run(self, program):
        log = PassLog(self.name)
        log.change("something")
        return log


class DeclaresTooMuch(Honest):
    effects: ClassVar[Effect] = Effect.EVAL_GRAPH | Effect.WEIGHTS


class DeclaresTooLittleKept(Honest):
    @property
    def preserves(self):
        return {"train": CHANGED, "eval": UNCHANGED}


class KeepsMoreThanRounded(Honest):
    @property
    def preserves(self):
        return {"train": UNCHANGED, "eval": Kept(Preserves.NUMERICALLY, Preserves.EXACTLY)}


class OtherStage(Honest):
    """Says that it leaves a folded program, of a masked one with masks."""

    ensures: ClassVar[Stage | None] = Stage.FOLDED


class Crashes(Honest):
    def lie(self, program, log):
        raise KeyError("lost")


class Restless(Honest):
    """Draws anew each time."""

    def lie(self, program, log):
        value = float(torch.rand((), generator=GENERATOR))
        node = returned(program)
        surgery.reroute(node, surgery.call_after(program, "eval", node, aten.clamp.default, (node, -1e6 - value)))
        return log


GENERATOR = torch.Generator().manual_seed(0)


@dataclass(frozen=True)
class Unspeakable(Honest):
    """Its spelling is not read back."""

    words: tuple[str, ...] = field(default=("a,b",))

    def __str__(self):
        return "honest{words=a,b}"


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (OtherValues, "outputs of eval should be preserved exactly, found not at all"),
        (Rounds, "outputs of eval should be preserved exactly, found up to rounding"),
        (StopsGradients, "gradients of eval should be preserved exactly, found not at all"),
        (TrainsOtherwise, "outputs of train should be preserved exactly, found not at all"),
        (TrainsOtherwise, "changes TRAIN_GRAPH, which its effects do not name"),
        (Renames, "changes NAMES, which its effects do not name"),
        (Rewrites, "changes WEIGHTS, which its effects do not name"),
        (Rewrites, "outputs of eval should be preserved exactly, found not at all"),
        (Freezes, "changes which parameters train"),
        (FalseShape, "of eval claims f32[4, 10]; its value is f32[3, 10]"),
        (FalseType, "of eval claims f64[N, 10]; its value is f32[3, 10]"),
        (NoSpec, "of eval has no spec; its value is f32[3, 10]"),
        (SilentLog, "changes EVAL_GRAPH, but its log names no change"),
        (Boasts, "its log names changes, but there are none"),
        (Boasts, "changes 0 case(s) (none), should change 3 or more"),
        (DeclaresTooMuch, "declares the effects WEIGHTS, which no case shows"),
        (DeclaresTooLittleKept, "declares that outputs of train are preserved not at all; every case preserves them exactly"),
        (DeclaresTooLittleKept, "declares that gradients of train are preserved not at all; every case preserves them"),
        (KeepsMoreThanRounded, "declares that outputs of eval are preserved up to rounding; every case preserves them exactly"),
        (OtherStage, "makes a program that is not valid"),
        (Crashes, "ends in KeyError: 'lost'"),
        (Restless, "gives something else when it is run again"),
        (Unspeakable, "is not what its own spelling honest{words=a,b} stands for"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)  # fmt: skip
def test_a_broken_promise_is_found(cls, message):
    assert message in broken(cls)


def test_few_cases_are_too_few():
    assert "changes 2 case(s) (no_batch, wide_linear), should change 3 or more" in broken(Honest, cases=FLAT)
    assert check_pass(Honest(), cases=FLAT, at_least=2)


def test_a_pass_is_tried_after_pipelines_of_its_own():
    rows = check_pass(Honest(), cases=FEW, after=["insert-masks{density=0.2}"])
    assert {row.setup for row in rows} == {"insert-masks{density=0.2}"}


def test_refusals_are_rows_and_no_faults():
    @dataclass(frozen=True)
    class Choosy(Honest):
        def run(self, program):
            if program.name == "frozen":
                raise PassError("choosy: not this one.")
            return super().run(program)

    rows = check_pass(Choosy(), cases=FEW, after=[""])
    assert [row.case for row in rows if row.refused] == ["frozen"]
    assert next(row for row in rows if row.refused).refused == "choosy: not this one."


def test_the_state_that_a_call_leaves_counts_as_an_output():
    """A batch norm that forgets to count its batches has the same outputs."""

    @dataclass(frozen=True)
    class Forgets(Honest):
        effects: ClassVar[Effect] = Effect.GRAPH

        def lie(self, program, log):
            for node in list(program.phases["train"].graph.nodes):
                if node.target is aten.batch_norm.default:
                    surgery.set_argument(node, "momentum", 0.0)
            return log

    assert "linear: outputs of train should be preserved exactly" in broken(Forgets)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_programs_are_awkward_and_small(case):
    program = case.trace()
    assert sum(p.numel() for p in program.parameters()) < 130_000
    values = [v for phase in ("train", "eval") for v in program.run_phase(phase, *case.args)]
    assert all(bool(value.isfinite().all()) for value in values)


def test_a_pass_that_takes_only_one_stage_is_tried_on_that_stage():
    @dataclass(frozen=True)
    class Folded(Honest):
        requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)

    assert all("fold-masks" in row.setup for row in check_pass(Folded(), cases=FEW))
    assert dataclasses.is_dataclass(EliminateDeadCode) and isinstance(CASES[0].build(), nn.Module)
