"""`nn.RNN` in a file: one `RNN` operator per layer, which takes any length. torch.onnx has translations for LSTM and GRU only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

aten = torch.ops.aten


def rnn_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By operator, what torch.onnx calls."""

    def translate(
        activation: str, input: Any, hx: Any, params: Sequence[Any], biases: bool, layers: int, both: bool, first: bool
    ) -> tuple[Any, Any]:
        from onnxscript import opset18  # here, because it takes a second to import

        op: Any = opset18
        directions, given = 2 if both else 1, 4 if biases else 2

        def joined(values: Sequence[Any]) -> Any:
            return values[0] if len(values) == 1 else op.Concat(*values, axis=0)

        def stacked(place: int, layer: int) -> Any:
            begin = layer * directions * given + place
            parts = params[begin : (layer + 1) * directions * given : given]
            return joined([op.Unsqueeze(value, op.Constant(value_ints=[0])) for value in parts])

        values, states = op.Transpose(input, perm=[1, 0, 2]) if first else input, list[Any]()
        for layer in range(layers):
            ends = [op.Constant(value_ints=[place * directions]) for place in (layer, layer + 1)]
            begun = op.Slice(hx, *ends, op.Constant(value_ints=[0]))
            bias = op.Concat(stacked(2, layer), stacked(3, layer), axis=1) if biases else None
            made, state = op.RNN(
                values, stacked(0, layer), stacked(1, layer), bias, None, begun,
                activations=[activation] * directions, direction="bidirectional" if both else "forward", hidden_size=hx.shape[2],
            )  # fmt: skip
            made = op.Transpose(made, perm=[0, 2, 1, 3])  # [T, directions, N, H] -> [T, N, directions, H]
            values = op.Reshape(made, op.Constant(value_ints=[0, 0, -1]))
            states.append(state)
        return op.Transpose(values, perm=[1, 0, 2]) if first else values, joined(states)

    def of(activation: str) -> Callable[..., Any]:
        def called(
            input: Any, hx: Any, params: Sequence[Any], has_biases: bool, num_layers: int, dropout: float, train: bool,
            bidirectional: bool, batch_first: bool,
        ) -> Any:  # fmt: skip
            del dropout, train
            return translate(activation, input, hx, params, has_biases, num_layers, bidirectional, batch_first)

        return called

    return {aten.rnn_tanh.input: of("Tanh"), aten.rnn_relu.input: of("Relu")}
