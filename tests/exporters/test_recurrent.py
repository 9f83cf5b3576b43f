"""`nn.RNN` is one operator per layer in a file, which takes any length, in every form that PyTorch has."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from sparsify.exporters import export
from sparsify.ir import trace
from sparsify.passes import Pipeline
from tests.cases import digits

FORMS = {
    "tanh": {},
    "relu, two ways, two layers": {"nonlinearity": "relu", "bidirectional": True, "num_layers": 2},
    "time first, no bias": {"batch_first": False, "bias": False},
}


class Recurrent(nn.Module):
    """Values at every step, and the last state."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.layer = nn.RNN(6, 5, **{"batch_first": True, **options})

    def forward(self, x):
        first = self.layer.batch_first
        values, state = self.layer(x if first else x.transpose(0, 1))
        return {"prediction": values if first else values.transpose(0, 1), "state": state.transpose(0, 1)}


class Values(nn.Module):
    """The values of a recurrent layer, without its state."""

    def forward(self, x):
        return x[0]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_takes_any_length(form, tmp_path):
    torch.manual_seed(0)
    model = Recurrent(**FORMS[form]).eval()
    program = trace(model, torch.randn(3, 7, 6), dynamic={"x": {1: "T"}}, task="regression")
    program = Pipeline.parse("insert-masks{density=0.5}")(program).eval()
    result = export(program, tmp_path / "m.onnx", inputs=torch.randn(8, 7, 6))
    assert result.nonzeros == program.costs().active > 0
    kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert kinds.count("RNN") == model.layer.num_layers and "MatMul" not in kinds
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for count, length in ((1, 1), (2, 13)):
        x = torch.randn(count, length, 6)
        for got, want in zip(session.run(None, {"x": x.numpy()}), program(x).values(), strict=True):
            np.testing.assert_allclose(got, want.detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("first", "laid_out"), [(True, "steps named before samples"), (False, "a view of other inputs")]
)
def test_inputs_whose_batch_is_not_first_in_memory(first, laid_out, tmp_path):
    """Rows of digits as steps; fewer samples than the example has are a view with gaps, of which no file is made."""
    layer = nn.GRU(8, 5, batch_first=first)
    model = nn.Sequential(layer, Values(), nn.Linear(5, 3)).eval()
    rows = digits(6)[0].squeeze(1)
    named = laid_out == "steps named before samples"
    x, dynamic = (rows, {0: "T", 1: "N"}) if named else (rows.transpose(0, 1), {1: "T"})
    program = trace(model, x, dynamic={"input": dynamic}).eval()
    result = export(program, tmp_path / "m.onnx", inputs=x)
    assert result.parity.batches == (1, 8) and result.parity.sizes["T"] == (1, 6, 13)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    other = rows[:3, :2] if named else rows[:2, :3]
    np.testing.assert_allclose(session.run(None, {"input": other.numpy()})[0], program(other).detach(), atol=1e-5)
