"""Which heads fit a task, which head a program has, and heads that are registered from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import fit, head_of, kind_of
from sparsify.errors import RecipeError, TrainingError
from sparsify.heads import HEADS, Fitted, Scaling, Temperature, fitting, named, owner, register
from sparsify.parts.samples import TensorSamples
from sparsify.runs.preflight import heads
from sparsify.runs.recipe import parse_recipe
from sparsify.tasks import TASKS
from sparsify.terminal import tables
from tests.terminal.test_tables import shown

aten = torch.ops.aten

SCORES = (
    "msp", "max-logit", "energy", "gen", "odin", "mahalanobis", "relative-mahalanobis", "knn", "vim", "react", "dice", "ash-p", "ash-b",
    "ash-s", "scale",
)  # fmt: skip


@dataclass(frozen=True)
class Halved(Scaling):
    """Half the scores, whatever the samples say."""

    name: ClassVar = "halved"
    buffers: ClassVar = {"half": 0}
    tasks: ClassVar = ("classification",)

    def identity(self, shape):
        return {"half": torch.ones(())}

    def scaled(self, call, output, state):
        return call(aten.mul.Tensor, output, state["half"])

    def fit(self, held, before):
        return Fitted({"half": torch.tensor(0.5).double()}, "half, whatever the samples say")


@pytest.fixture
def halved():
    with HEADS.forgetting():
        yield register(Halved())


def test_a_task_has_the_heads_that_it_names_the_usual_one_first():
    assert {name: fitting(task) for name, task in TASKS.items()} == {
        "classification": (
            "temperature", "vector", "matrix", "dirichlet", "ensemble-temperature", "isotonic", "histogram", "h-calibration",
            "masked-temperature", "lac", "class-lac", "aps", "raps", "accept", *SCORES,
        ),
        "binary": ("temperature", "masked-temperature"), "multilabel": ("label-temperature",), "regression": ("interval",),
        "dense": ("temperature", "masked-temperature"), "sequence": ("temperature", "masked-temperature"), "custom": (),
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "lac:0.9",
        "lac:0.9999999",
        "ash-p:99.9999999",
        "energy:1",
        "energy:0.00012345678",
        "odin:1234.56789",
        "knn:50:1000000",
        "gen:0.1:1234567",
    ],
)
def test_a_head_is_read_back_as_it_is_written(text):
    assert named(text).spec == text and named(named(text).spec) == named(text)


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({"temperature": ()}, "temperature"), ({"temperature": (3,)}, "label-temperature"), ({"scale": (3,), "bias": (3,)}, "vector"),
        ({"matrix": (3, 3), "bias": (3,)}, "matrix"), ({"powers": (3, 3), "offset": (3,)}, "dirichlet"),
        ({"temperature": (), "shares": (3,)}, "ensemble-temperature"),
        ({"lowest": (3,), "knots": (3, 64), "slopes": (3, 64), "rises": (3, 64)}, "isotonic"),
        ({"first": (3,), "edges": (3, 15), "rates": (3, 15), "steps": (3, 15)}, "histogram"),
        ({"masked_temperature": ()}, "masked-temperature"), ({"starts": (50,), "segment_slopes": (50,)}, "h-calibration"),
        ({"reach": ()}, "interval"), ({"reach": (2, 3)}, "interval"), ({"scale": (3,)}, None), ({}, None),
    ],
)  # fmt: skip
def test_names_and_dimensions_of_buffers_say_which_head_it_is(shapes, kind):
    head = owner(shapes)
    assert kind is None if head is None else head.name == kind


def test_a_registered_head_is_attached_fitted_recognised_and_listed(halved):
    assert fitting(TASKS["classification"]) == (
        *TASKS["classification"].heads, "h-calibration", "masked-temperature", "lac", "class-lac", "aps", "raps", "accept", *SCORES,
        "halved",
    )  # fmt: skip
    x = torch.randn(40, 4)
    program = sp.trace(nn.Linear(4, 3), (x[:2],)).eval()
    program = sp.Pipeline.parse("attach-calibration-head{kind=halved}")(program).eval()
    assert head_of(program) == halved and kind_of(program) == "halved"
    log = fit(program, TensorSamples(x, torch.arange(40) % 3))
    assert (log.kind, log.temperature, log.note) == ("halved", None, "half, whatever the samples say")
    found = program.outputs(x)
    torch.testing.assert_close(found["probabilities"], (found["logits"] / 2).softmax(1))
    (row,) = [line for line in shown(tables.heads(), width=200).splitlines() if "halved" in line]
    assert "Half the scores, whatever the samples say." in row and "classification" in row and "probabilities" in row


def test_a_recipe_names_a_registered_head_for_the_tasks_that_it_fits(halved):
    program = sp.trace(nn.Linear(4, 3), (torch.rand(2, 4),))
    assert [step.kind for step in heads(parse_recipe(None, {"calibrator": "halved"}), program)] == ["halved"]
    assert [step.kind for step in heads(parse_recipe(None, {"task": "regression"}), program)] == ["interval"]
    with pytest.raises(RecipeError, match="'halved' does not fit task 'regression', which has interval"):
        parse_recipe(None, {"calibrator": "halved", "task": "regression"}).build_task()
    with pytest.raises(RecipeError, match=r"there is no calibration head 'halve'\. Nearest: halved"):
        parse_recipe(None, {"calibrator": "halve"})


def test_a_program_whose_head_is_not_installed_says_so(halved):
    program = sp.trace(nn.Linear(4, 3), (torch.rand(2, 4),)).eval()
    program = sp.Pipeline.parse("attach-calibration-head{kind=halved}")(program).eval()
    del HEADS._entries["halved"]
    assert kind_of(program) is None
    with pytest.raises(
        TrainingError,
        match=r"the calibration head 'halved' with the buffers half \[\], which makes probabilities, and no head of that name",
    ):
        fit(program, TensorSamples(torch.rand(4, 4), torch.arange(4) % 3))
    with pytest.raises(
        TrainingError, match=r"half \[\], which makes probabilities.*Install the package that it is from"
    ):
        heads(parse_recipe(None, {}), program)


@pytest.mark.parametrize(("old", "new"), [("temperature", "vector"), ("vector", "temperature"), ("halved", "vector")])
def test_the_head_of_a_saved_program_is_replaced_by_that_of_the_recipe(halved, old, new):
    x = torch.randn(300, 4)
    plain = sp.trace(nn.Linear(4, 3), (x[:2],)).eval()
    program = sp.Pipeline.parse(f"attach-calibration-head{{kind={old}}}")(plain).eval()
    samples = TensorSamples(x, torch.distributions.Categorical(logits=plain(x).detach() / 3).sample())
    fit(program, samples)
    (step,) = heads(parse_recipe(None, {"calibrator": new}), program)
    (want,) = heads(parse_recipe(None, {"calibrator": new}), plain)
    assert step.replace and not want.replace
    program, fresh = (sp.Pipeline((made,))(found).eval() for made, found in ((step, program), (want, plain)))
    assert kind_of(program) == new and program.output_names("eval") == ("logits", "probabilities")
    assert {name for name, _ in program.named_buffers()} == {name for name, _ in fresh.named_buffers()}
    assert fit(program, samples) == fit(fresh, samples)
    assert torch.equal(program.outputs(x)["probabilities"], fresh.outputs(x)["probabilities"])
    assert heads(parse_recipe(None, {"calibrator": new}), program) == ()


def test_a_name_of_another_head_is_refused(halved):
    class Other(Temperature):
        name = "halved"

    with pytest.raises(RecipeError, match="the calibration head name 'halved' is taken"):
        register(Other())
