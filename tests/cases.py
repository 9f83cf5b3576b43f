"""Tiny models as data: what every pass and every method is tried on. More awkward ones are in `sparsify.passes.contract`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sparsify.ir import Program, trace
from sparsify.loading import digits_cnn
from sparsify.passes.contract import Case


def digits(count: int = 16) -> tuple[Tensor, Tensor]:
    """Real images [count, 1, 8, 8] in [0, 1] and their labels."""
    images, target = _digits()
    return torch.tensor(images[:count], dtype=torch.float32)[:, None] / 16, torch.tensor(target[:count])


@functools.cache
def held_out_logits(count: int = 1000, trained_on: int = 200) -> tuple[Tensor, Tensor]:
    """Overconfident logits [count, 10], float64, of digits that a linear classifier was not fitted to, and their labels."""
    images, target = _digits()
    x = torch.tensor(images, dtype=torch.float64).flatten(1) / 16
    x, y = torch.cat([x, torch.ones_like(x[:, :1])], 1), torch.tensor(target)
    known, wanted = x[:trained_on], torch.nn.functional.one_hot(y[:trained_on], 10).double()
    weight = torch.linalg.solve(known.T @ known + 0.1 * torch.eye(65).double(), known.T @ wanted)
    rows = slice(trained_on, trained_on + count)
    return 20 * x[rows] @ weight, y[rows]


@functools.cache
def _digits() -> tuple[Any, Any]:
    data: Any = load_digits()
    return data.images, data.target


class ConvBn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 16, 10)
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.bn(self.conv(x))), 2)
        return self.fc(self.drop(x.flatten(1)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.head(x.mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.pointwise(self.depthwise(torch.relu(self.grouped(torch.relu(self.stem(x)))))))
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    """Two layers with one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x.flatten(1))))))


class Shared(nn.Module):
    """One module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(torch.relu(self.body(x.flatten(1))))))


class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.body(x.flatten(1)))
        return {"features": features, "logits": self.head(features)}


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(32, 16)
        self.right = nn.Linear(32, 16)
        self.head = nn.Linear(32, 10)

    def forward(self, top: Tensor, bottom: Tensor) -> Tensor:
        return self.head(torch.relu(torch.cat([self.left(top), self.right(bottom)], dim=1)))


class Depthwise(nn.Module):
    """Depthwise and pointwise convolutions with batch norm, as in MobileNets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.pointwise = nn.Conv2d(8, 16, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.bn0(self.stem(x)))
        x = nn.functional.relu6(self.bn1(self.depthwise(x)))
        return self.head(nn.functional.relu6(self.bn2(self.pointwise(x))).mean((2, 3)))


class Dropouts(nn.Module):
    """Every spelling of dropout: modules, and the function with and without the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.channels = nn.Dropout2d(0.2)
        self.body = nn.Linear(8 * 16, 32)
        self.alpha = nn.AlphaDropout(0.1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channels(torch.max_pool2d(torch.relu(self.conv(x)), 2))
        x = nn.functional.dropout(x.flatten(1), 0.3, training=self.training)
        return self.head(self.alpha(torch.selu(self.body(x))))


class Attention(nn.Module):
    """A pre-norm block of `nn.MultiheadAttention` over the 8 rows of an image, and a feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.norm1 = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, dropout=0.1, batch_first=True)
        self.norm2 = nn.LayerNorm(16)
        self.feed = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.squeeze(1))
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.feed(self.norm2(x))
        return self.head(x.mean(1))


class Embedded(nn.Module):
    """Pixels as 17 tokens, with positions; the last matrix product reads the token table again."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(17, 16)
        self.positions = nn.Parameter(torch.randn(64, 16) * 0.02)
        self.mix = nn.Linear(16, 16)
        self.tied = nn.Linear(16, 17, bias=False)
        self.tied.weight = self.tokens.weight
        self.head = nn.Linear(17, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.relu(self.mix(self.tokens(tokens) + self.positions))
        return self.head(self.tied(x).mean(1))


def wide() -> nn.Module:
    """A convolution with channels enough for groups of outputs to leave inputs out."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))


def _images() -> tuple[Any, ...]:
    return (digits()[0],)


def _halves() -> tuple[Any, ...]:
    flat = digits()[0].flatten(1)
    return (flat[:, :32].contiguous(), flat[:, 32:].contiguous())


def _tokens() -> tuple[Any, ...]:
    return ((digits()[0].flatten(1) * 16).long(),)


CASES: tuple[Case, ...] = (
    Case("mlp", mlp, _images()),
    Case("conv_bn", ConvBn, _images()),
    Case("residual", Residual, _images()),
    Case("grouped", Grouped, _images()),
    Case("tied", Tied, _images()),
    Case("shared", Shared, _images()),
    Case("dict_output", DictOutput, _images()),
    Case("two_inputs", TwoInputs, _halves()),
    Case("depthwise", Depthwise, _images()),
    Case("dropouts", Dropouts, _images()),
    Case("attention", Attention, _images()),
    Case("embedded", Embedded, _tokens()),
    Case("wide", wide, _images()),
)
PREDICTOR = Case("predictor", mlp, _images(), task="regression")


def cnn(seed: int = 0) -> Program:
    """The program of the digits job's CNN with weights of that seed, of the caller's own; it is traced once."""
    program, state = _cnn(seed)
    torch.set_rng_state(state)
    return program.clone()


@functools.cache
def _cnn(seed: int) -> tuple[Program, Tensor]:
    torch.manual_seed(seed)
    model = digits_cnn()
    state = torch.get_rng_state()
    return trace(model, (digits(2)[0],)), state


def case(name: str) -> Case:
    """The case of that name."""
    return next(found for found in (*CASES, PREDICTOR) if found.name == name)
