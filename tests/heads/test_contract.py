"""`check_head` passes every head of the package, and finds each broken promise."""

from __future__ import annotations

import pytest
import torch

from sparsify.contracts import check
from sparsify.errors import ContractError
from sparsify.heads import HEADS, Fitted, Interval, Temperature, Vector, check_head, fitting
from sparsify.tasks import TASKS

G = torch.Generator().manual_seed(0)
Z = 2 * torch.randn(300, 3, generator=G)
LABELS = torch.multinomial(Z.softmax(1), 1, generator=G).squeeze(1)
SAMPLES = {
    "classification": (2 * Z, LABELS),
    "binary": (2 * Z[:, :1], (torch.rand(300, generator=G) < Z[:, 0].sigmoid()).long()),
    "multilabel": (2 * Z, (torch.rand(300, 3, generator=G) < Z.sigmoid()).long()),
    "regression": (Z, Z + torch.randn(300, 3, generator=G)),
    "dense": (2 * Z[:, :, None], LABELS[:, None]),
    "sequence": (2 * Z[:, None], LABELS[:, None]),
}
PAIRS = [(kind, task) for task in SAMPLES for kind in fitting(TASKS[task])]


@pytest.mark.parametrize(("kind", "task"), PAIRS, ids=[f"{kind} of {task}" for kind, task in PAIRS])
def test_every_head_keeps_its_promises_for_every_task_that_it_fits(kind, task):
    check_head(HEADS[kind], task, *SAMPLES[task])


@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind not in ("temperature", "label-temperature")])
def test_the_nodes_of_a_program_compute_what_the_head_says(kind):
    task = "regression" if kind == "interval" else "classification"
    check(HEADS[kind], task, *SAMPLES[task])


class Mine(Vector):
    name, buffers, tasks = "mine", {"slope": 1, "shift": 1}, ("classification",)

    def identity(self, shape):
        return dict(zip(self.buffers, super().identity(shape).values(), strict=True))

    def scaled(self, call, output, state):
        return super().scaled(call, output, dict(zip(("scale", "bias"), state.values(), strict=True)))

    def fit(self, held, before):
        return Fitted(dict(zip(self.buffers, super().fit(held, before).values.values(), strict=True)))


class OfNoTask(Mine):
    tasks = ()


class Twin(Mine):
    buffers = Vector.buffers


class SameOutput(Mine):
    outputs = ("logits",)


class OtherBuffers(Mine):
    def identity(self, shape):
        return {"slope": torch.ones(3)}


class TwoValues(Mine):
    def apply(self, call, output, state, task):
        return super().apply(call, output, state, task) * 2


class OneNumber(Mine):
    def apply(self, call, output, state, task):
        return (output.amax(1),)


class Mixes(Mine):
    def apply(self, call, output, state, task):
        return (output - output.mean(0),)


class Doubles(Mine):
    def identity(self, shape):
        return {name: value + 1 for name, value in super().identity(shape).items()}


class Draws(Mine):
    def fit(self, held, before):
        return Fitted({name: torch.rand(3) for name in before})


class Shrinks(Mine):
    def fit(self, held, before):
        return Fitted({name: torch.zeros(2) for name in before})


class Overflows(Mine):
    def fit(self, held, before):
        return Fitted({name: torch.full((3,), 1e300, dtype=torch.float64) for name in before})


class Worsens(Mine):
    def fit(self, held, before):
        return Fitted({"slope": torch.full((3,), -1.0), "shift": torch.zeros(3)})


class Gives(Mine):
    def fit(self, held, before):
        raise ValueError("nothing to learn from")


class Overwrites(Mine):
    def fit(self, held, before):
        held.target.zero_()
        return super().fit(held, before)


BROKEN = {
    OfNoTask: "does not fit task 'classification'",
    Twin: "head 'vector' has buffers of the same names and dimensions",
    SameOutput: r"outputs should be names other than 'logits', each once; found \['logits'\]",
    OtherBuffers: r"identity\(\) gives \{'slope': \(3,\)\}, and `buffers` says",
    TwoValues: r"apply\(\) gives 2 values for the outputs \['probabilities'\]",
    OneNumber: "output 'probabilities' has not the shape and the type of what the task reads",
    Mixes: "the outputs of a sample depend on the other samples",
    Doubles: r"scaled\(\) changes the scores before anything is fitted",
    Draws: r"fit\(\) differs from call to call",
    Shrinks: r"fit\(\) gives \{'slope': \(2,\), 'shift': \(2,\)\} for buffers",
    Overflows: "values that single precision cannot hold",
    Worsens: r"fit\(\) raises the NLL of the samples it was fitted to",
    Gives: r"cannot be tried: these samples do not determine it \(nothing to learn from\)",
    Overwrites: r"changes the tensors it is given",
}


@pytest.mark.parametrize("head", BROKEN, ids=lambda head: head.__name__)
def test_a_broken_promise_is_named(head):
    output, target = SAMPLES["classification"]
    with pytest.raises(ContractError, match=BROKEN[head]):
        check_head(head(), "classification", output.clone(), target.clone())


def test_a_head_that_keeps_them_passes_and_other_things_are_refused():
    assert check_head(Mine(), "classification", *SAMPLES["classification"]).values.keys() == {"slope", "shift"}
    with pytest.raises(
        ContractError, match=r"is a sparsify\.heads\.Head, found the class Temperature\. Derive it from Head"
    ):
        check_head(Temperature, "classification", *SAMPLES["classification"])  # type: ignore[arg-type]
    with pytest.raises(ContractError, match=r"check\(head, task, output, target\), found 0 arguments"):
        check(Interval())


class Wrong(Mine):
    """Records other operators than it computes with."""

    def apply(self, call, output, state, task):
        computed = super().apply(call, output, state, task)
        return (
            computed
            if isinstance(output, torch.Tensor)
            else super().apply(call, output, {**state, "shift": state["slope"]}, task)
        )


def test_nodes_that_compute_something_else_are_found():
    with pytest.raises(ContractError, match="output 'probabilities' of a program differs from what apply"):
        check(Wrong(), "classification", *SAMPLES["classification"])
