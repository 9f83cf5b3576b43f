"""An operator that cannot be converted is named, with the module it stands in, and the advice is true for it."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from onnxruntime import InferenceSession
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sparsify.errors import ExportError
from sparsify.exporters import export
from sparsify.ir import trace


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class Triangle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.qr(x)[1]


class Eigenvalues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x @ x.mT)


@pytest.mark.parametrize(
    ("kind", "operator", "advice"),
    [
        (Attention, "scaled_dot_product_attention", r"\[N, heads, L, E\]"),
        (Triangle, "linalg_qr", "in place of linalg_qr"),
        (Eigenvalues, "linalg_eigh", "in place of _?linalg_eigh"),
    ],
)
def test_the_operator_that_cannot_be_converted_is_named(kind, operator, advice, tmp_path):
    torch.manual_seed(1)
    x = torch.randn(6, 3, 3)
    program = trace(nn.Sequential(nn.Linear(3, 3), kind(), nn.Flatten()), (x,)).eval()
    with pytest.raises(ExportError, match=operator) as caught:
        export(program, tmp_path / "m.onnx", inputs=[x])
    text = str(caught.value)
    if kind is not Eigenvalues:  # torch decomposes that one into an operator that the program does not have
        assert "'1'" in text or f"%{operator}" in text, text  # the module, or the node
    assert "\x1b" not in text and "step 3/3" not in text and "Try another opset" not in text
    assert caught.value.__cause__ is not None
    assert re.search(advice, text)


class Twice(nn.Module):
    """Reads one value flat in several places, each time by a call of its own."""

    def __init__(self, also: str):
        super().__init__()
        self.conv, self.a, self.b, self.also = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 16), nn.Linear(64, 16), also

    def forward(self, x: Tensor):
        h = self.conv(x) if self.also == "of a layer" else x
        y = torch.relu(self.a(h.flatten(1))) + torch.sigmoid(self.b(h.flatten(1)))
        if self.also == "three times":
            return y * h.flatten(1).mean(1, keepdim=True)
        return (y, h.flatten(1)) if self.also == "as an output" else y


@pytest.mark.parametrize("also", ["of an input", "of a layer", "three times", "as an output"])
def test_a_value_may_be_flattened_again(also, tmp_path):
    x = torch.tensor(load_digits().images[:16], dtype=torch.float32)[:, None] / 16
    program = trace(Twice(also), (x[:2],), outputs={"logits": 0} if also == "as an output" else None).eval()
    result = export(program, tmp_path / "m.onnx", inputs=[x])
    assert result.parity.batches == (1, 16) and result.parity.units > (64 if also == "as an output" else 9)


class Constant(nn.Module):
    """Returns what no input moves: a weight, a buffer, a number of the code, a weight twice."""

    def __init__(self, also: str):
        super().__init__()
        self.head, self.also = nn.Linear(64, 10), also
        self.register_buffer("classes", torch.arange(10.0))

    def forward(self, x: Tensor):
        y = self.head(x.flatten(1))
        kinds = {"weight": self.head.weight, "buffer": self.classes, "number": torch.ones(3)}
        return (y, self.head.weight, self.head.weight) if self.also == "twice" else (y, kinds[self.also])


@pytest.mark.parametrize("also", ["weight", "buffer", "number", "twice"])
def test_an_output_may_be_what_no_input_moves(also, tmp_path):
    x = torch.tensor(load_digits().images[:16], dtype=torch.float32)[:, None] / 16
    program = trace(Constant(also), (x[:2],), outputs={"logits": 0}).eval()
    result = export(program, tmp_path / "m.onnx", inputs=[x])
    got = InferenceSession(result.path, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    for found, wanted in zip(got, program(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-5, rtol=1e-5)
