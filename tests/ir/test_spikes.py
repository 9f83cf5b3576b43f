"""Spikes counted by hand, and against a loop that watches the neurons."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.ir.spikes import is_spiking, mean_rate, spikes_over
from sparsify.parts.samples import TensorSamples
from tests.passes.test_spiking import Eager, Net, X, Y, spiking


def test_a_layer_by_hand():
    """Currents 1, 0.75 and 0.25 with leak 0.5: 1111, 0101 and, as the potential stays below 0.5, 0000."""
    net = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [0.75], [0.25]]))
    program = sp.Pipeline.parse("spiking{steps=4}")(sp.trace(net, (torch.ones(2, 1),)))
    (layer,), work = spikes_over(program, TensorSamples(torch.ones(5, 1), torch.zeros(5, dtype=torch.int64)))
    assert (layer.layer, layer.neurons, layer.silent, layer.saturated) == ("1", 3, 1, 1)
    assert layer.rates == pytest.approx((1 / 3, 2 / 3, 1 / 3, 2 / 3))
    assert layer.rate == mean_rate((layer,)) == pytest.approx(0.5)
    # the inputs are the whole number 1, which the first layer adds 3 times; 6 of 12 spikes times 2 outputs
    assert (work.macs, work.accumulates) == (0, pytest.approx(3 + 6 * 2))


def test_rates_are_those_of_a_loop_and_zeros_are_no_work():
    program = spiking(Net(), "insert-masks{density=0.25 weights=conv.weight} | spiking{steps=3}").eval()
    net = Net().eval()
    with torch.no_grad():
        net.conv.weight.copy_(program.get_parameter("conv.weight") * program.mask("conv.weight"))
        eager = Eager(net, 3)
        y = eager.fired([net.stem(4 * X)] * 3)
        second = eager.fired((net.bn(net.conv(y)) + y + net.short(X).repeat(3, 1, 1, 1)).chunk(3))
    layers, work = spikes_over(program, TensorSamples(X, Y))
    for found, wanted in zip(layers, (y, second), strict=True):
        steps = wanted.unflatten(0, (3, -1))
        assert found.rates == pytest.approx(steps.flatten(1).double().mean(1).tolist())
        assert found.silent == int((steps.flatten(0, 1).sum(0) == 0).sum())
        assert found.saturated == int(steps.flatten(0, 1).all(0).sum())
    assert work.macs == pytest.approx(64 * 54 + 64 * 6), "stem and shortcut read the picture"
    pooled = torch.max_pool2d(second, 2).double().mean().item()
    conv, fc = 3 * 64 * 324 * 0.25 * y.double().mean().item(), 3 * 960 * pooled
    assert work.accumulates == pytest.approx(conv + fc)


def test_other_networks_do_not_spike():
    assert not is_spiking(sp.trace(Net(), (X[:4],)))
