"""Weights of a file that the converter transposed get their names back."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

import sparsify as sp
from sparsify.exporters import export
from sparsify.exporters.initializers import name_weights


class Tokens(nn.Module):
    """Linear layers over [N, T, F], which convert to products with transposed weights."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x):
        return self.down(torch.relu(self.up(x))).mean(1)


def test_transposed_weights_are_named_and_nothing_else_changes(tmp_path):
    x = torch.randn(4, 3, 12)
    program = sp.trace(Tokens(), (x,)).eval()
    export(program, tmp_path / "m.onnx", inputs=[x])
    model = onnx.load(tmp_path / "m.onnx")
    before = [numpy_helper.to_array(item) for item in model.graph.initializer]
    assert not any(item.name == "phase.up.weight" for item in model.graph.initializer)
    named = name_weights(model, program)
    onnx.checker.check_model(named)
    stored = {item.name: numpy_helper.to_array(item) for item in named.graph.initializer}
    assert np.array_equal(stored["phase.up.weight"], program.get_parameter("up.weight").detach().numpy().T)
    assert np.array_equal(stored["phase.down.weight"], program.get_parameter("down.weight").detach().numpy().T)
    assert all(map(np.array_equal, before, stored.values()))
    read = [name for node in named.graph.node for name in node.input]
    assert read.count("phase.up.weight") == 1
