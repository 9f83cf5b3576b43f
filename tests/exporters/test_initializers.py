"""Files of networks with recurrent and joined weights: trained sparsely, proved, and with exactly the zeros of their masks."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify as sp
from tests.cases import digits


class Rows(nn.Module):
    """Reads the rows of an image one after another, both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x[:, 0])[0][:, -1])


class Joined(nn.Module):
    """A layer whose weight is joined from two parameters, as split query and key projections are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 64) / 8), nn.Parameter(torch.randn(6, 64) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), torch.cat([self.first, self.second]))


@pytest.mark.parametrize("build", [Rows, Joined])
def test_weights_that_are_joined_in_the_file_are_trained_sparsely_and_proved(build, tmp_path):
    torch.manual_seed(0)
    images, labels = digits(32)
    program = sp.trace(build(), (images,)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1, momentum=0.9)
    trainer = sp.attach(sp.methods.rigl(density=0.3, update_every=2), program, optimizer, total_steps=12)
    weights = {name for name, p in program.named_parameters() if p.ndim > 1}
    assert program.masks().keys() == weights
    for _ in range(5):
        optimizer.zero_grad()
        trainer.loss(program(images), labels).backward()
        trainer.step()
    assert trainer.counts["rounds"] == 2
    assert all(trainer.grown.values())
    for name, mask in program.masks().items():
        assert not program.weight(name)[~mask].any()
    result = sp.export(program.eval(), tmp_path / "model.onnx", inputs=[images])
    assert result.positions == sum(mask.numel() for mask in program.masks().values())
    nonzeros = sum(int(program.weight(name).count_nonzero()) for name in weights)
    arrays = [numpy_helper.to_array(item) for item in onnx.load(tmp_path / "model.onnx").graph.initializer]
    wide = [array for array in arrays if array.dtype == np.float32 and array.size >= 128]
    assert result.nonzeros == nonzeros == sum(int(np.count_nonzero(a)) for a in wide if a.size > 128 or a.ndim > 2)


def test_the_dense_gradient_of_a_recurrent_weight_is_that_of_autograd():
    torch.manual_seed(0)
    images, labels = digits(8)
    program = sp.trace(Rows(), (images,)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    trainer = sp.attach(
        sp.methods.rigl(density=0.3, update_every=1, replaces_step=False), program, optimizer, total_steps=9
    )
    model = Rows()
    model.load_state_dict({name: value for name, value in program.state_dict().items() if not name.endswith("_mask")})
    F.cross_entropy(model(images), labels).backward()
    trainer.loss(program(images), labels).backward()
    gradients = dict(model.named_parameters())
    for name, tap in program.taps().items():
        torch.testing.assert_close(tap.gradient, gradients[name].grad, rtol=1e-4, atol=1e-6)
