"""Which output is the logits is said, or is the only one that can be; it is never guessed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.errors import TraceError
from sparsify.ir import TraceWarning, trace
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
    with pytest.raises(TraceError, match=rf"f32\[N, 32.*f32\[N, 10.*outputs=.*--set logits={choice}"):
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
