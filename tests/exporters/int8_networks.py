"""Small networks of every shape of output, trained on digits, and what a file of theirs in integers is judged with."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import nn

import sparsify as sp
from sparsify.exporters.conversion import convert
from sparsify.exporters.initializers import name_weights
from sparsify.exporters.int8_forms import form_in_int8, quantizable
from sparsify.exporters.int8_samples import Samples, samples_of
from sparsify.ir.roles import TraceWarning
from tests.cases import digits


class Heads(nn.Module):
    """Scores, an embedding of layers of its own, and the features of both."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head, self.embed = nn.Linear(32, 10), nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 16), nn.Tanh())

    def forward(self, x):
        features = self.body(x)
        return {"logits": self.head(features), "embedding": self.embed(features), "features": features}


class Pixels(nn.Module):
    """[N, K, H, W]"""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


class Tokens(nn.Module):
    """[N, T, V]"""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 12)

    def forward(self, x):
        return self.c(self.b(self.a(x.squeeze(1)).relu()).relu())


class Numbers(nn.Module):
    """[N, K] of targets of very different sizes, [N, 1] or [N]."""

    def __init__(self, sizes, flat=False):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, len(sizes))
        )
        self.register_buffer("sizes", torch.tensor(sizes))
        self.flat = flat

    def forward(self, x):
        found = self.net(x) * self.sizes
        return found[:, 0] if self.flat else found


def _loss(out, x, y):
    entropy, part = nn.functional.cross_entropy, y.float() / 9
    if isinstance(out, dict):
        points = torch.sin(torch.arange(16) * y[:, None].float())
        return entropy(out["logits"], y) + (out["embedding"] - points).square().mean()
    if out.ndim == 4:
        return entropy(out, (x[:, 0] * 4).long().clamp(0, 3))
    if out.ndim == 3:
        return entropy(out.transpose(1, 2), x[:, 0].sum(2).long())
    if out.ndim == 2 and out.shape[1] == 3:
        wanted = torch.stack([part, y.float() % 2, (y > 4).float()], 1)
        return (out / torch.tensor([1.0, 1000.0, 0.01]) - wanted).square().mean()
    return (out.flatten() - part).square().mean()


NETWORKS = {
    "heads": Heads, "pixels": Pixels, "tokens": Tokens, "number": lambda: Numbers([1.0]),
    "flat number": lambda: Numbers([1.0], flat=True), "numbers": lambda: Numbers([1.0, 1000.0, 0.01]),
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    program: sp.Program
    samples: Samples
    plain: ir.Model
    integers: ir.Model


@functools.cache
def network(name: str) -> Network:
    """A trained network, its fp32 file, and the file with all layers in integers."""
    torch.manual_seed(0)
    (x, y), model = digits(1797), NETWORKS[name]()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(80):
        rows = slice(200 * (step % 6), 200 * (step % 6) + 200)
        optimizer.zero_grad()
        _loss(model(x[rows]), x[rows], y[rows]).backward()
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)  # the embedding has layers of its own
        program = sp.Pipeline.parse("deploy | fold-batch-norm")(sp.trace(model.eval(), (x[:2],)).eval())
    samples = samples_of(program, [x[:256]], [x[1200:1500]], None, batch=1)
    plain = name_weights(convert(program, [x[:64]], 20), program)
    kinds = dict.fromkeys(quantizable(plain, "dense"), "int8")
    return Network(program, samples, plain, form_in_int8(plain, "dense", kinds, samples.calibration)[0])
