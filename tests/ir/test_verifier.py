"""Each rule has an example that breaks it; all violations are collected, then raised once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.errors import VerificationError
from sparsify.ir import Stage, surgery, trace, verify, violations
from sparsify.ir.nodes import TensorSpec, vouch
from sparsify.ir.verifier import RULES
from sparsify.passes import Pipeline


def masked():
    torch.manual_seed(0)
    program = trace(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (torch.randn(2, 6),))
    return Pipeline.parse("insert-masks{density=0.5}")(program)


def node(program, phase, target):
    return next(n for n in program.phases[phase].graph.nodes if n.target == target)


def break_state_missing(program):
    node(program, "train", "0.bias").target = "nowhere.bias"


def break_spec_missing(program):
    node(program, "train", "0.bias").meta["spec"] = TensorSpec("x", (7,), "float32")


def break_phases_disagree(program):
    site = program.mask_sites()[0]
    apply = next(n for n in program.phases["eval"].graph.nodes if getattr(n.target, "__name__", "") == "apply_mask")
    surgery.bypass(program, "eval", apply, apply.args[0])
    assert site.weight == "0.weight"


def break_outputs_named(program):
    program.output_node("eval").meta["names"] = ("logits", "logits")


def break_mask_bypassed(program):
    linear = next(n for n in program.phases["train"].graph.nodes if "linear" in n.name)
    surgery.set_argument(linear, "weight", node(program, "train", "0.weight"))


def break_mask_malformed(program):
    surgery.add_state(program, "0.weight_mask", torch.ones(5, 6))


def break_inactive_nonzero(program):
    with torch.no_grad():
        for site in program.mask_sites():
            program.weight(site.weight).mul_(program.mask(site.weight))
    lowered = Pipeline.parse("lower-masks")(program)
    program.adopt(lowered)
    with torch.no_grad():
        program.weight("0.weight").fill_(1.0)
    vouch(program.weight("0.weight"), program.mask("0.weight"))


def break_random_mask_malformed(program):
    program.adopt(Pipeline.parse("insert-random-masks")(program))
    surgery.add_state(program, "0.weight_visible", torch.ones(5, 6))


def break_masks_absent(program):
    program.stage = Stage.FOLDED


def break_phases_missing(program):
    program.stage = Stage.DEPLOYED


def break_inputs_disagree(program):
    graph = program.phases["train"].graph
    with graph.inserting_before(next(iter(graph.nodes))):
        graph.placeholder("extra")


def break_packing_malformed(program):
    torch.manual_seed(0)
    wide = trace(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)), (torch.randn(2, 32),))
    text = (
        "insert-masks{pattern=grouped:16 density=0.5 keep-dense=2.weight} | fold-masks | deploy"
        " | lower-grouped-linear{form=grouped}"
    )
    program.adopt(Pipeline.parse(text)(wide))
    assert violations(program) == []
    program.get_buffer("0.weight_inputs").add_(16)


def break_compact_malformed(program):
    torch.manual_seed(0)
    wide = trace(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)), (torch.randn(2, 32),))
    text = "insert-masks{pattern=grouped:16 density=0.5 keep-dense=2.weight} | compact-grouped"
    program.adopt(Pipeline.parse(text)(wide))
    assert violations(program) == []
    program.mask("0.weight").logical_not_()


BREAKERS = {
    "compact_malformed": break_compact_malformed,
    "packing_malformed": break_packing_malformed,
    "phases_missing": break_phases_missing,
    "inputs_disagree": break_inputs_disagree,
    "state_missing": break_state_missing,
    "spec_missing": break_spec_missing,
    "phases_disagree": break_phases_disagree,
    "outputs_named": break_outputs_named,
    "mask_bypassed": break_mask_bypassed,
    "mask_malformed": break_mask_malformed,
    "inactive_nonzero": break_inactive_nonzero,
    "random_mask_malformed": break_random_mask_malformed,
    "masks_absent": break_masks_absent,
}


def test_every_rule_has_a_failing_example():
    assert {rule.__name__ for rules in RULES.values() for rule in rules} == set(BREAKERS)


@pytest.mark.parametrize("rule", BREAKERS)
def test_a_broken_rule_is_found(rule):
    program = masked()
    assert violations(program) == []
    BREAKERS[rule](program)
    assert rule.replace("_", "-") in {violation.rule for violation in violations(program)}
    with pytest.raises(VerificationError, match=rule.replace("_", "-")):
        verify(program)


def test_all_violations_are_collected_and_the_text_is_a_note():
    program = masked()
    break_spec_missing(program)
    break_mask_bypassed(program)
    with pytest.raises(VerificationError, match=r"spec-missing(.|\n)*mask-bypassed") as caught:
        verify(program)
    assert any("program @" in note for note in caught.value.__notes__)
