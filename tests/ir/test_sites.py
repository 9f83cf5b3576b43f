"""Parameter and MAC counts, worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.ir import TraceWarning, trace
from tests.cases import case


def test_macs_of_a_convolution_and_a_linear_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
    sites = {site.name: site for site in trace(model, (torch.randn(2, 3, 8, 8),)).maskable()}
    assert sites["0.weight"].macs == 8 * 3 * 3 * 3 * 4 * 4  # every kernel at 4 x 4 output positions
    assert sites["2.weight"].macs == 128 * 10
    assert (sites["0.weight"].kind, sites["2.weight"].kind) == ("conv", "linear")


def test_macs_of_a_linear_layer_over_a_sequence():
    sites = trace(nn.Sequential(nn.Linear(4, 6)), (torch.randn(2, 5, 4),)).maskable()
    assert [site.macs for site in sites] == [4 * 6 * 5]


def test_grouped_and_depthwise_convolutions():
    model = nn.Sequential(nn.Conv2d(8, 16, 3, groups=2, padding=1), nn.Conv2d(16, 16, 3, groups=16, padding=1))
    model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    grouped, depthwise = trace(model, (torch.randn(2, 8, 4, 4),)).maskable()
    assert (grouped.macs, grouped.groups, grouped.skip) == (16 * 4 * 9 * 16, 2, None)
    assert (depthwise.macs, depthwise.groups, depthwise.skip) == (16 * 9 * 16, 16, "a depthwise convolution")


def test_a_module_called_twice_counts_once_in_parameters_and_twice_in_macs():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.fc(x))

    program = trace(Twice(), (torch.randn(2, 4),))
    (site,) = program.maskable()
    assert (site.uses, site.macs, program.costs().params) == (2, 32, 20)


def test_a_raw_matmul_parameter():
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(5, 3))

        def forward(self, x):
            return x @ self.table

    (site,) = trace(Product(), (torch.randn(2, 5),)).maskable()
    assert (site.name, site.kind, site.macs) == ("table", "matmul", 15)


def test_macs_where_the_batch_is_not_the_first_dimension():
    found = case("attention")
    program = found.trace()
    # 8 rows an image: [8, N, 16] goes into the projections and [8*N, 16] out of the attention.
    assert {site.name: site.macs for site in program.maskable()} == {
        "embed.weight": 8 * 16 * 8,
        "attention.in_proj_weight": 8 * 48 * 16,
        "attention.out_proj.weight": 8 * 16 * 16,
        "feed.0.weight": 8 * 32 * 16,
        "feed.3.weight": 8 * 16 * 32,
        "head.weight": 10 * 16,
    }


def test_macs_of_a_program_with_a_fixed_batch():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(x.reshape(4, 4))

    with pytest.warns(TraceWarning, match="fixes its batch"):
        (site,) = trace(Fixed(), (torch.randn(4, 4),)).maskable()
    assert site.macs == 3 * 4


def test_macs_of_a_transposed_convolution():
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (site,) = trace(model, (torch.randn(2, 4, 5, 5),)).maskable()
    # Every one of 4 x 5 x 5 input values meets 6 kernels of 9, whatever the stride makes of the output's size.
    assert (site.kind, site.macs) == ("conv-transpose", 4 * 5 * 5 * 6 * 9)
