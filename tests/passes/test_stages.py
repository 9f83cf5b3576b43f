"""Advice is derived from what passes require and ensure."""

from __future__ import annotations

import pytest

import sparsify as sp
from sparsify.errors import PassError
from sparsify.ir import Stage
from sparsify.passes import PASSES
from sparsify.passes.stages import advice, route
from tests.cases import case

MADE_BY = {
    Stage.TRACED: "",
    Stage.MASKED: "insert-masks",
    Stage.FOLDED: "insert-masks | fold-masks",
    Stage.DEPLOYED: "deploy",
}


def test_the_shortest_route_is_found():
    names = {goal: [step.name for step in route(PASSES.values(), Stage.TRACED, (goal,)) or ()] for goal in Stage}
    assert names == {stage: [step for step in text.split(" | ") if step] for stage, text in MADE_BY.items()}
    assert route(PASSES.values(), Stage.FOLDED, (Stage.MASKED,)) is None
    assert route([], Stage.TRACED, (Stage.MASKED,)) is None


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("name", PASSES)
def test_advice_that_is_followed_works(name, stage):
    step = PASSES[name]
    if stage in step.requires:
        return
    said = advice(step, stage, PASSES.values())
    if said.startswith("Run "):
        text = " | ".join(part for part in (MADE_BY[stage], said[4:-7]) if part)
        program = sp.Pipeline.parse(text)(case("mlp").trace())
        assert program.stage in step.requires
    elif "comes before" in said:
        blocking = PASSES[said.split("comes before ")[1].split(":")[0]]
        assert stage not in blocking.requires and set(blocking.requires) & {*step.requires}
    else:
        assert step.ensures is not None and said.startswith("It has run already")


def test_order_outputs_on_a_masked_program_is_told_to_fold_and_deploy():
    told = r"order-outputs needs .* is masked\. Run fold-masks \| deploy first\."
    with pytest.raises(PassError, match=told) as caught:
        sp.Pipeline.parse("insert-masks | order-outputs")(case("mlp").trace())
    assert "already has masks" not in str(caught.value)


def test_no_route_is_said():
    assert advice(PASSES["fold-masks"], Stage.TRACED, []).startswith("No pass known here")
