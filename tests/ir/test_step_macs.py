"""Multiply-accumulates of a training step, by hand."""

from __future__ import annotations

import torch
from torch import nn

import sparsify as sp
from sparsify.ir.step_macs import StepMacs, step_macs


def counted(model, *inputs):
    return step_macs(sp.trace(model, inputs))


def test_a_convolution_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    first, second, last = 16 * 4 * 9, 4 * 2 * 4 * 9, 8 * 3  # 4 x 4 and 2 x 2 pixels
    total = first + second + last
    assert counted(model, torch.rand(2, 1, 4, 4)) == {"": StepMacs(total, second + last, total)}


def test_masked_weights_are_counted_by_name():
    program = sp.trace(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), (torch.rand(2, 8),))
    masked = sp.Pipeline.parse("insert-masks{density=0.5 keep-dense=2.*} | insert-gradient-taps")(program)
    assert step_macs(masked) == {"": StepMacs(64, 64, 64), "0.weight": StepMacs(128, 0, 128)}


def test_a_weight_that_is_read_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(torch.relu(self.fc(x)))

    assert counted(Twice(), torch.rand(2, 8)) == {"": StepMacs(2 * 64, 64, 2 * 64)}


def test_products_of_values_have_gradients_of_both():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):  # [N, 3, 4]
            return self.q(x) @ self.k(x).transpose(1, 2) + x @ x.transpose(1, 2)

    layer, product = 3 * 4 * 4, 3 * 3 * 4
    assert counted(Products(), torch.rand(2, 3, 4)) == {
        "": StepMacs(2 * layer + 2 * product, inputs=2 * product, weights=2 * layer)
    }


def test_attention_computes_twice_as_much_backwards():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Linear(4, 4)

        def forward(self, x):  # [N, 3, 4]
            return nn.functional.scaled_dot_product_attention(self.q(x), x, x)

    layer, products = 3 * 4 * 4, 2 * 3 * 3 * 4
    assert counted(Attention(), torch.rand(2, 3, 4)) == {"": StepMacs(layer + products, 2 * products, layer)}


def test_a_recurrent_layer_counts_its_inputs_in_any_case():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(3, 6, batch_first=True)

        def forward(self, x):
            return self.layer(x)[0]

    each = 5 * (4 * 6 * 3 + 4 * 6 * 6)
    assert counted(Recurrent(), torch.rand(2, 5, 3)) == {"": StepMacs(each, each, each)}


def test_nothing_behind_detach_has_a_gradient():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x).detach())

    assert counted(Cut(), torch.rand(2, 8)) == {"": StepMacs(64 + 16, 0, 64 + 16)}


def test_sums_and_shares():
    assert StepMacs(1, 2, 3) + StepMacs(10, 20, 30) == StepMacs(11, 22, 33)
    assert StepMacs(9, 6, 3).times(1, 3) == StepMacs(3, 2, 1) and StepMacs(9, 6, 3).total == 18
