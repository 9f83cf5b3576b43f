"""A program that returns nothing but NaN proves no file; one that returns some is compared, NaN with NaN."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import ExportError
from tests.cases import digits

X = digits(32)[0].flatten(1)


class Net(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.fc, self.last = nn.Linear(64, 10), last

    def forward(self, x):
        return self.last(self.fc(x))


@pytest.mark.parametrize(
    ("last", "broken", "message"),
    [
        (lambda y: y, "weights", r"nothing but NaN in logits on the inputs given.* Its fc\.weight hold"),
        (
            lambda y: (y * 0) / 0,
            "",
            "nothing but NaN in logits on the inputs given, which proves no file. Give finite inputs",
        ),
        (lambda y: {"logits": y, "spread": y.sum(1).sub(1e9).log()}, "", "nothing but NaN in spread"),
    ],
)
def test_a_program_that_returns_nothing_but_nan_is_refused(last, broken, message, tmp_path):
    net = Net(last)
    if broken:
        nn.init.constant_(net.fc.weight, float("nan"))
    with pytest.raises(ExportError, match=message):
        sp.export(sp.trace(net, (X,), check=False).eval(), tmp_path / "model.onnx", inputs=[X])
    assert not list(tmp_path.iterdir())


def test_some_nan_are_compared_as_themselves(tmp_path):
    program = sp.trace(Net(lambda y: y.masked_fill(torch.arange(10) == 3, float("nan"))), (X,), check=False).eval()
    sp.export(program, tmp_path / "model.onnx", inputs=[X])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    assert torch.tensor(found).isnan().sum(0).tolist() == [0, 0, 0, 32, 0, 0, 0, 0, 0, 0]


def test_inputs_of_nan_are_named_as_the_cause(tmp_path):
    program = sp.trace(Net(lambda y: y), (X,), check=False).eval()
    with pytest.raises(ExportError, match=r"nothing but NaN in logits .* Give finite inputs"):
        sp.export(program, tmp_path / "model.onnx", inputs=[X * float("nan")])
