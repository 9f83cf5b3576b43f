"""Heads that give something else beside the calibrated output: a set of classes, a score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from sparsify.contracts import check
from sparsify.errors import ContractError
from sparsify.heads import Fitted, Head, Temperature
from tests.heads.test_contract import SAMPLES

aten = torch.ops.aten


@dataclass(frozen=True)
class Sets(Temperature):
    """Calibrated probabilities, the classes that reach a threshold, and the highest probability."""

    name: ClassVar = "sets"
    outputs: ClassVar = ("probabilities", "classes", "confidence")
    beside: ClassVar = ("classes", "confidence")
    buffers: ClassVar = {"temperature": 0, "threshold": 0}
    tasks: ClassVar = ("classification", "dense", "sequence")

    def identity(self, shape):
        return {"temperature": torch.ones(()), "threshold": torch.zeros(())}

    def apply(self, call, output, state, task):
        (table,) = super().apply(call, output, state, task)
        inside = call(aten.ge.Tensor, table, state["threshold"])
        return table, inside, call(aten.amax.default, table, [task.class_dim])

    def fit(self, held, before):
        found = super().fit(held, before)
        scores, answers = held.judged
        table = (scores / found.values["temperature"]).softmax(1)
        right = table.gather(1, answers[:, None])[:, 0]
        return Fitted({**found.values, "threshold": right.quantile(1 - held.level)}, found.note)


@dataclass(frozen=True)
class Distance(Head):
    """How far the highest score lies above the mean of all: a score and no probabilities."""

    name: ClassVar = "distance"
    outputs: ClassVar = ("ood_score",)
    beside: ClassVar = ("ood_score",)
    buffers: ClassVar = {"spread": 0}
    tasks: ClassVar = ("classification",)
    unfitted: ClassVar = "distances are not divided by their spread"

    def identity(self, shape):
        return {"spread": torch.ones(())}

    def apply(self, call, output, state, task):
        far = call(aten.sub.Tensor, call(aten.amax.default, output, [1]), call(aten.mean.dim, output, [1]))
        return (call(aten.div.Tensor, far, state["spread"]),)

    def fit(self, held, before):
        return Fitted({"spread": (held.output.amax(1) - held.output.mean(1)).std()})


@pytest.mark.parametrize(
    ("head", "task"), [(Sets(), "classification"), (Sets(), "dense"), (Distance(), "classification")]
)
def test_a_head_may_add_outputs_of_other_shapes_and_types(head, task):
    check(head, task, *SAMPLES[task])  # with tensors, in a program and in an exported file


class WithoutRows(Sets):
    def apply(self, call, output, state, task):
        table, inside, _ = super().apply(call, output, state, task)
        return table, inside, call(aten.amax.default, output)


def changed(**declared):
    return type("Broken", (Sets,), declared)()


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (changed(beside=()), "output 'classes' has not the shape and the type of what the task reads; name it in `beside`"),
        (changed(beside=("classes", "confidence", "probabilities")), "`beside` names 'probabilities'; it should name some of `outputs`"),
        (changed(beside=("classes", "confidence", "more")), "`beside` names 'more'"),
        (WithoutRows(), "output 'confidence', which is one of `beside`, has no row per sample"),
    ],
)  # fmt: skip
def test_what_is_beside_is_declared_and_has_a_row_per_sample(head, words):
    with pytest.raises(ContractError, match=words):
        check(head, "classification", *SAMPLES["classification"])


def test_a_set_that_depends_on_the_batch_breaks_the_contract():
    class Ranked(Sets):
        def apply(self, call, output, state, task):
            table, _, highest = super().apply(call, output, state, task)
            return table, call(aten.ge.Tensor, table, call(aten.select.int, table, 0, -1)), highest

    with pytest.raises(ContractError, match="the outputs of a sample depend on the other samples of the batch"):
        check(Ranked(), "classification", *SAMPLES["classification"])
