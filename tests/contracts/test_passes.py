"""Every pass × every case: what a pass declares is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from sparsify.errors import PassError, PatternError
from sparsify.ir import Stage
from sparsify.passes import PASSES, UNCHANGED, Effect, InsertMasks, Pass, Pipeline, Preserves
from tests.cases import CASES

PREFIX = {
    "insert-masks": "",
    "insert-gradient-taps": "insert-masks | ",
    "insert-random-masks": "insert-masks{density=0.3} | insert-gradient-taps | ",
    "remove-random-masks": "insert-masks{density=0.3} | insert-random-masks | ",
    "record-randomness": "insert-masks | ",
    "lower-masks": "insert-masks | ",
    "widen-classifier": "",
    "attach-calibration-head": "",
    "fold-batch-norm": "insert-masks | insert-random-masks | record-randomness | ",
    "fold-masks": "insert-masks{density=0.3} | insert-gradient-taps | insert-random-masks | record-randomness | ",
    "eliminate-dead-code": "insert-masks | ",
    "order-outputs": "insert-masks{density=0.3} | fold-masks | ",
    "eliminate-unread-outputs": "insert-masks{density=0.3} | fold-masks | ",
    "fold-layer-norm": "insert-masks{density=0.3} | fold-masks | ",
    "absorb-biases": "insert-masks{density=0.3} | fold-masks | ",
    "lower-grouped-conv": "insert-masks{density=0.3} | fold-masks | ",
    "lower-grouped-linear": "insert-masks{density=0.3} | fold-masks | ",
}


def before_and_after(case, name):
    program = case.trace().eval()
    with torch.no_grad():  # fresh statistics would make folding trivial
        for key, buffer in program.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    prefix = PREFIX[name].rstrip(" |")
    before = Pipeline.parse(prefix)(program) if prefix else program
    return before, Pipeline.parse(name)(before)


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_preserved_outputs_and_declared_effects(case, name):
    before, after = before_and_after(case, name)
    kept, effects = PASSES[name]().preserves["eval"].outputs, PASSES[name].effects
    for key, want in before.outputs(*case.args).items():
        have = after.outputs(*case.args)[key]
        if kept is Preserves.EXACTLY:
            assert torch.equal(want, have)
        else:
            torch.testing.assert_close(have, want, rtol=0, atol=1e-5 * float(want.detach().abs().max()))
    if PASSES[name].ensures:
        assert after.stage is PASSES[name].ensures
    state = [dict((*p.named_parameters(), *p.named_buffers())) for p in (before, after)]
    if not effects & Effect.NAMES:
        assert state[0].keys() == state[1].keys()
    if not effects & Effect.WEIGHTS:
        for key in state[0].keys() & state[1].keys():
            assert torch.equal(state[0][key], state[1][key]), key


@pytest.mark.parametrize("name", PASSES)
def test_the_callers_program_is_untouched(name):
    case = CASES[1]
    program = case.trace()
    prefix = PREFIX[name].rstrip(" |")
    before = Pipeline.parse(prefix)(program) if prefix else program
    text, state = before.text(), {k: v.clone() for k, v in before.state_dict().items()}
    Pipeline.parse(name)(before)
    assert before.text() == text
    assert all(torch.equal(state[k], v) for k, v in before.state_dict().items())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_program_with_masks_and_taps_survives_the_file(case, tmp_path):
    program = case.trace()
    pipeline = "insert-masks{density=0.3} | insert-gradient-taps | insert-random-masks | record-randomness"
    program = Pipeline.parse(f"{pipeline} | attach-calibration-head")(program)
    program.save(tmp_path / "p.sparsify")
    loaded = type(program).load(tmp_path / "p.sparsify")
    assert loaded.text() == program.text()
    assert loaded.taps().keys() == program.taps().keys()
    assert loaded.hooks().keys() == program.hooks().keys()
    assert loaded.random_mask_sites() == program.random_mask_sites()
    assert loaded.stage is Stage.MASKED


@pytest.mark.parametrize(
    "text",
    [
        "insert-masks",
        "insert-masks{keep-dense=conv.weight,fc.weight density=0.25}",
        "insert-masks{pattern=nm:2:4 density=0.5} | insert-gradient-taps | lower-masks",
        "attach-calibration-head{kind=vector} | eliminate-dead-code",
    ],
)
def test_parse_and_str_are_inverse(text):
    pipeline = Pipeline.parse(text)
    assert Pipeline.parse(str(pipeline)) == pipeline


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("insert-mask", "Nearest: insert-masks"),
        ("insert-masks{densty=0.1}", "has no option"),
        ("insert-masks{density=much}", "should be a number"),
        ("insert-masks{density=0.1 density=0.2}", "twice"),
        ("insert-masks | ", "cannot read"),
        ("insert-masks{keep-dense=nothing.*}", "matches no weight"),
        ("insert-masks{keep-dense=*}", "no weight"),
        ("fold-masks", "Run insert-masks first"),
        ("insert-masks | insert-masks", "insert-masks.* is masked. It has run already: go on from this program"),
        ("insert-masks | fold-masks | lower-masks", "lower-masks comes before fold-masks"),
        ("insert-masks | insert-gradient-taps | insert-gradient-taps", "already has gradient taps"),
        ("insert-masks | insert-random-masks | insert-random-masks", "already has random masks"),
        ("insert-random-masks{rate=1.0}", r"in \[0, 1\), found 1.0"),
        ("insert-random-masks{weights=nothing.*}", "matches none of"),
        ("insert-masks | fold-masks | insert-random-masks", "insert-random-masks comes before fold-masks"),
        ("attach-calibration-head | attach-calibration-head", "already has an output"),
        ("attach-calibration-head{kind=magic}", "no choice 'magic'"),
        ("insert-masks{density=0.5} | lower-masks", "not 0"),
    ],
)
def test_misuse_says_what_to_do(text, message):
    program = CASES[1].trace()
    with pytest.raises(PassError, match=message):
        Pipeline.parse(text)(program)


def test_a_pass_that_fails_names_itself_its_options_and_the_passes_before_it():
    program = CASES[0].trace()
    text = "insert-masks{density=0.5} | insert-gradient-taps | insert-random-masks{rate=0.3 weights=nothing}"
    with pytest.raises(PassError) as caught:
        Pipeline.parse(text)(program)
    assert str(caught.value).splitlines()[1:] == [
        "Raised by the pass insert-random-masks{rate=0.3 weights=nothing}.",
        "Before insert-random-masks{rate=0.3 weights=nothing} ran: insert-masks{density=0.5} | insert-gradient-taps.",
    ]
    with pytest.raises(PatternError, match=r"Raised by the pass insert-masks\{weights=5.weight pattern=block:4x1\}"):
        Pipeline.parse("insert-masks{weights=5.weight pattern=block:4x1}")(program)


@dataclass(frozen=True)
class Faulty(Pass):
    """Fails as a program with a fault does."""

    name: ClassVar = "faulty"
    requires: ClassVar = (Stage.MASKED,)
    effects: ClassVar = Effect.NONE

    @property
    def preserves(self):
        return {"train": UNCHANGED, "eval": UNCHANGED}

    def run(self, program):
        return program.input_specs[7]


def test_an_error_nobody_raised_on_purpose_is_told_with_the_pass_and_keeps_its_cause():
    with pytest.raises(PassError, match="faulty failed on 'mlp' with IndexError: tuple index out of range") as caught:
        Pipeline((InsertMasks(density=0.5), Faulty()))(CASES[0].trace())
    assert "Before faulty ran: insert-masks{density=0.5}." in str(caught.value)
    assert isinstance(caught.value.__cause__, IndexError)
