"""Every pass × every case: what a pass declares is measured by `sparsify.passes.contract`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from sparsify.errors import PassError, PatternError
from sparsify.ir import Stage
from sparsify.passes import UNCHANGED, Effect, InsertMasks, Pass, Pipeline
from sparsify.passes.contract import CASES as AWKWARD
from sparsify.passes.contract import check_pass
from tests.cases import CASES
from tests.contracts.tried_passes import setups, tried

SOME = [
    (step, (*cases[: len(AWKWARD)], *cases[len(AWKWARD) + place % 4 :: 4]))
    for place, (step, cases) in enumerate(tried())
]
"""The awkward models and every fourth of the others; ``python -m tests.contracts.tried_passes`` tries all."""


@pytest.mark.parametrize(("step", "cases"), SOME, ids=[str(step) for step, _ in SOME])
def test_a_pass_keeps_its_promises(step, cases):
    check_pass(step, cases=cases, after=setups(step))


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
        ("insert-masks{densty=0.1}", "has no option 'densty'"),
        ("insert-masks{densty}", "has no option 'densty'"),
        ("insert-masks{density}", "option 'density' has no '=' and no value. Write density=value"),
        ("insert-masks{keep-dense density=0.1}", "option 'keep-dense' has no '='"),
        ("insert-masks{density =0.1}", "option 'density' has no '='"),
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
        ("insert-masks | deploy", "Run fold-masks first"),
        ("fold-batch-norm", "Run deploy first"),
        ("deploy | insert-masks", "insert-masks comes before deploy"),
        ("deploy | deploy", "It has run already"),
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
