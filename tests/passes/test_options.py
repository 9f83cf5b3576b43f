"""Options are checked when a pass is made: a refusal names the pass, the option, what was found and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from sparsify.errors import AllocationError, PassError, PatternError
from sparsify.passes import (
    PASSES,
    UNCHANGED,
    AttachCalibrationHead,
    Effect,
    InsertMasks,
    InsertRandomMasks,
    LowerGroupedConv,
    LowerGroupedLinear,
    Pass,
    PassLog,
    Pipeline,
    Range,
    WidenClassifier,
    option,
)


@dataclass(frozen=True)
class Everything(Pass):
    """Has an option of each type."""

    name: ClassVar = "everything"
    requires: ClassVar = ()
    effects: ClassVar = Effect.NONE

    words: tuple[str, ...] = option((), "a list")
    count: int = option(1, "a whole number", within=Range(1))
    share: float | None = option(None, "a number", within=Range(0, 1, open_low=True, open_high=True))
    switch: bool = option(False, "a switch")
    text: str = option("a", "a text", choices=("a", "b"))

    @property
    def preserves(self):
        return {"train": UNCHANGED, "eval": UNCHANGED}

    def run(self, program):
        return PassLog(self.name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": "a*"}, r"everything: option words should be a list \(a tuple of texts\), found 'a\*'"),
        ({"words": ("a", 1)}, "option words should be a list"),
        ({"count": 1.5}, "option count should be a whole number, found 1.5"),
        ({"count": True}, "option count should be a whole number, found True"),
        ({"count": 0}, "option count should be at least 1, found 0"),
        ({"count": None}, "option count should be a whole number, found None"),
        ({"share": 0.0}, r"option share should be in \(0, 1\), found 0.0"),
        ({"share": 1}, r"option share should be in \(0, 1\), found 1"),
        ({"share": "0.5"}, "option share should be a number, found '0.5'"),
        ({"share": float("nan")}, "option share should be in .*, found nan"),
        ({"switch": 1}, "option switch should be true or false, found 1"),
        ({"text": "c"}, "option text has no choice 'c'. Choose one of: a, b."),
        ({"text": ("a",)}, r"option text should be a text, found \('a',\)"),
    ],
)
def test_a_wrong_option_is_refused_when_the_pass_is_made(options, message):
    with pytest.raises(PassError, match=message):
        Everything(**options)


def test_right_options_are_taken():
    assert Everything(words=("a",), count=3, share=0.5, switch=True, text="b").share == 0.5
    assert Everything(share=None) == Everything()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("lower-grouped-conv{form=bogus}", PassError, "lower-grouped-conv: option form has no choice 'bogus'"),
        ("lower-grouped-linear{form=bogus}", PassError, "Choose one of: auto, grouped"),
        (
            "insert-random-masks{rate=7}",
            PassError,
            r"insert-random-masks: option rate should be in \[0, 1\), found 7.0",
        ),
        ("insert-masks{density=1.2}", PassError, r"insert-masks: option density should be in \(0, 1\], found 1.2"),
        ("insert-masks{density=inf}", PassError, r"should be in \(0, 1\], found inf"),
        ("insert-masks{score=best}", PassError, "Choose one of: magnitude, random"),
        ("insert-masks{allocation=best}", PassError, "Choose one of: .*global_magnitude"),
        (
            "insert-masks{allocation=global_saliency}",
            PassError,
            "insert-masks: option allocation: global_saliency ranks by gradients .* Choose one of: uniform, .*lamp; or give",
        ),
        ("insert-masks{keep-frozen=maybe}", PassError, "keep-frozen should be true or false, found 'maybe'"),
        ("insert-masks{pattern=nm:4:2}", PatternError, "insert-masks: option pattern: .*N:M needs 0 < N < M"),
        ("insert-masks{pattern=circles}", PatternError, "insert-masks: option pattern: there is no pattern 'circles'"),
        ("attach-calibration-head{kind=magic}", PassError, "Choose one of: temperature, vector"),
        ("widen-classifier{seed=-1}", PassError, r"option seed should be in \[0, "),
        ("widen-classifier{seed=1.5}", PassError, "option seed should be a whole number, found '1.5'"),
    ],
)
def test_a_pipeline_with_a_wrong_option_does_not_parse(text, error, message):
    with pytest.raises(error, match=message):
        Pipeline.parse(text)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (InsertMasks, {"weights": "fc*"}),
        (InsertMasks, {"density": "0.1"}),
        (InsertRandomMasks, {"rate": 1.0}),
        (AttachCalibrationHead, {"kind": ""}),
        (WidenClassifier, {"score": None}),
        (LowerGroupedConv, {"form": "GROUPED"}),
        (LowerGroupedLinear, {"keep_dense": ["a"]}),
    ],
)
def test_a_pass_made_in_python_is_checked_too(make, options):
    with pytest.raises(PassError, match="option"):
        make(**options)


def test_every_option_that_names_something_says_what_there_is():
    """A text without choices is read by something that refuses what it does not know."""
    for cls in PASSES.values():
        for found in cls.options():
            if found.type == "text" and not found.choices:
                with pytest.raises((PassError, PatternError, AllocationError), match=f"option {found.name}"):
                    cls.parse_options(f"{found.name}=no-such-thing")
