"""Which output is the logits is said, or is the only one that can be; it is never guessed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.errors import PassError, TaskError, TraceError
from sparsify.ir import TraceWarning, trace
from sparsify.ir.classifier import classes
from sparsify.tasks import Regression
from tests.cases import digits


class Returns(nn.Module):
    def __init__(self, form) -> None:
        super().__init__()
        self.body, self.head, self.form = nn.Linear(64, 32), nn.Linear(32, 10), form

    def forward(self, x):
        features = torch.relu(self.body(x.flatten(1)))
        return self.form(features, self.head(features))


FORMS = {
    "one": (lambda f, s: s, ("logits",)),
    "pooled_last": (lambda f, s: (f[:, :, None], s), ("output_0", "logits")),
    "key": (lambda f, s: {"features": f, "logits": s}, ("features", "logits")),
    "labels_too": (lambda f, s: (s, s.argmax(1), s.sum()), ("logits", "output_1", "output_2")),
    "none": (lambda f, s: (None, s), ("output_0", "logits")),
    "same_twice": (lambda f, s: (s, s), ("logits", "output_1")),
    "map": (lambda f, s: s[:, :, None, None], ("logits",)),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_only_output_that_can_be_is_the_logits(name):
    form, names = FORMS[name]
    program = trace(Returns(form), (digits(6)[0],))
    assert program.output_names("train") == program.output_names("eval") == names


AMBIGUOUS = {
    "tuple": (lambda f, s: (f, s), 1),
    "dict": (lambda f, s: {"embedding": f, "scores": s}, "scores"),
    "maps": (lambda f, s: (f[:, :, None], s[:, :, None]), 1),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_several_that_could_be_are_listed_and_one_is_chosen(name):
    form, choice = AMBIGUOUS[name]
    x, _ = digits(6)
    with pytest.raises(TraceError, match=rf"f32\[N, 32.*f32\[N, 10.*outputs=.*--set model.logits={choice}"):
        trace(Returns(form), (x,))
    model = Returns(form).eval()
    program = trace(model, (x,), outputs={"logits": choice, "features": 0})
    assert program.outputs(x)["logits"].shape[1] == 10
    assert program.outputs(x)["features"].shape[1] == 32
    with pytest.raises(TraceError, match="names no output"):
        trace(model, (x,), outputs={"logits": "missing"})
    with pytest.raises(TraceError, match="two names"):
        trace(model, (x,), outputs={"logits": 0, "features": 0})


def test_the_number_of_classes_decides_where_one_output_has_it():
    x, _ = digits(6)
    with pytest.warns(TraceWarning, match="output 1 is taken as the logits, the only one with 10 columns"):
        program = trace(Returns(lambda f, s: (f, s)), (x,), classes=10)
    assert program.output_names("eval") == ("output_0", "logits")
    with pytest.raises(TraceError, match="more than one"):
        trace(Returns(lambda f, s: (s, 2 * s)), (x,), classes=10)


def test_no_output_that_can_be_is_refused():
    with pytest.raises(TraceError, match="no floating-point tensor in train mode"):
        trace(Returns(lambda f, s: s.argmax(1)), (digits(4)[0],))


def numbers(shape):
    """A model that returns features [N, 32], and scores in another shape."""
    return Returns(lambda f, s: (f[:, :, None, None], shape(s)))


@pytest.mark.parametrize(
    ("task", "shape", "names"),
    [
        ("regression", lambda s: s[:, 0], ("prediction",)),
        ("regression", lambda s: s[:, :1], ("prediction",)),
        (Regression(criterion="mae"), lambda s: s, ("prediction",)),
        ("binary", lambda s: s[:, 0], ("logits",)),
        ("dense", lambda s: s.reshape(-1, 2, 5), ("logits",)),
        ("sequence", lambda s: s.reshape(-1, 5, 2), ("logits",)),
        ("custom", lambda s: s, ("output_0",)),
    ],
)
def test_the_task_names_the_output_it_reads(task, shape, names):
    program = trace(Returns(lambda f, s: shape(s)), (digits(6)[0],), task=task)
    assert program.output_names("train") == program.output_names("eval") == names


@pytest.mark.parametrize(
    ("task", "shape", "names"),
    [
        ("binary", lambda s: s[:, 0], ("output_0", "logits")),
        ("classification", lambda s: s, ("output_0", "logits")),
        ("sequence", lambda s: s.reshape(-1, 5, 2), ("output_0", "logits")),
        ("custom", lambda s: s, ("output_0", "output_1")),
    ],
)
def test_the_only_shape_that_a_task_takes_is_its_output(task, shape, names):
    assert trace(numbers(shape), (digits(6)[0],), task=task).output_names("eval") == names


def test_two_outputs_that_a_task_could_read_are_told_apart_by_the_user():
    x, _ = digits(6)
    with pytest.raises(TraceError, match=r"could be the prediction.*outputs=\{'prediction': 1\}"):
        trace(numbers(lambda s: s[:, 0]), (x,), task="regression")
    program = trace(numbers(lambda s: s[:, 0]), (x,), task="regression", outputs={"prediction": 1})
    assert program.output_names("eval") == ("output_0", "prediction")
    with pytest.raises(TraceError, match="could be the logits"):
        trace(numbers(lambda s: s.reshape(-1, 5, 2)), (x,), task="dense")


def test_a_model_that_returns_nothing_for_its_task_is_refused():
    with pytest.raises(TraceError, match=r"task 'dense' takes class numbers.*no output has such a shape"):
        trace(Returns(lambda f, s: s), (digits(6)[0],), task="dense")
    with pytest.raises(TaskError, match="Nearest: regression"):
        trace(Returns(lambda f, s: s), (digits(6)[0],), task="regresion")


def test_an_output_that_is_not_there_is_said():
    program = trace(Returns(lambda f, s: s[:, 0]), (digits(6)[0],), task="regression")
    with pytest.raises(TraceError, match="returns prediction in train mode, and 'logits' is not among them"):
        program.logits(program(digits(6)[0]))
    with pytest.raises(PassError, match="no 'logits', so it has no classifier"):
        classes(program)


def test_all_outputs_are_read_as_the_model_returns_them():
    x, _ = digits(6)
    program = trace(Returns(lambda f, s: {"a": f, "b": (s, s.sum())}), (x,), task="custom").eval()
    read = program.reading(None, "eval", program.run_phase("eval", x))
    assert [*read] == ["a", "b"]
    assert torch.equal(read["b"][0].sum(), read["b"][1])


def test_weights_beside_the_prediction_are_named():
    with pytest.warns(TraceWarning, match=r"the prediction does not depend on 'head.*outputs=\{'prediction': \.\.\.\}"):
        trace(Returns(lambda f, s: (f, s.sum(1))), (digits(6)[0],), task="regression", outputs={"prediction": 0})
