"""Batch-norm statistics for averaged weights against a loop, and the requests that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import TrainingError
from sparsify.training.averaging import reestimate_batch_norm
from tests.cases import ConvBn, digits


def test_statistics_are_the_means_over_the_batches_whatever_they_were():
    x, _ = digits(64)
    program = sp.trace(ConvBn(), (x,)).eval()
    program.get_buffer("bn.running_mean").fill_(7.0)
    batches = list(x.split(16))
    assert reestimate_batch_norm(program, batches) == 4 and not program.training
    seen = [nn.functional.conv2d(batch, program.weight("conv.weight"), padding=1).detach() for batch in batches]
    mean = torch.stack([value.mean((0, 2, 3)) for value in seen]).mean(0)
    variance = torch.stack([value.var((0, 2, 3), correction=1) for value in seen]).mean(0)
    torch.testing.assert_close(program.get_buffer("bn.running_mean"), mean)
    torch.testing.assert_close(program.get_buffer("bn.running_var"), variance)


def test_torch_agrees():
    x, _ = digits(64)
    model = ConvBn()
    program = sp.trace(model, (x,))
    reestimate_batch_norm(program, x.split(16))
    want = {name: value.clone() for name, value in program.named_buffers() if "running" in name}
    torch.optim.swa_utils.update_bn(x.split(16), model)
    for name, value in want.items():
        torch.testing.assert_close(value, dict(model.named_buffers())[name])


def test_statistics_need_batches_and_none_are_needed_without():
    x, y = digits(16)
    program = sp.trace(ConvBn(), (x,)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    method = sp.methods.averaged(sp.methods.static_random(density=0.5), start_at=1, average_every=1)
    trainer = sp.attach(method, program, optimizer, total_steps=2)
    nn.functional.cross_entropy(program(x), y).backward()
    trainer.step()
    with pytest.raises(TrainingError, match=r"call trainer.finish\(batches\)"):
        trainer.finish()
    trainer.finish([x])
    assert trainer.counts["forwards"] == 2 and trainer.counts["backwards"] == 1
    plain = sp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (x,))
    assert reestimate_batch_norm(plain, []) == 0
