"""The models of `sparsify.passes.contract.cases`: networks with structures that passes often get wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear() -> nn.Module:
    """Linear layers, one without a bias, a batch norm over features, and dropout."""
    return nn.Sequential(
        nn.Linear(24, 16, bias=False),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(16, 12),
        nn.Tanh(),
        nn.Linear(12, 10),
    )


class OneDimension(nn.Module):
    """1-d convolutions: strided, dilated, with ``padding="same"``, and batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 8, 3, padding="same", bias=False)
        self.norm1 = nn.BatchNorm1d(8)
        self.second = nn.Conv1d(8, 8, 3, stride=2, dilation=2, padding=2)
        self.norm2 = nn.BatchNorm1d(8, affine=False)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.selu(self.norm1(self.first(x)))
        return self.head(F.silu(self.norm2(self.second(x))).mean(2))


def three_dimensions() -> nn.Module:
    """3-d convolutions, the second in groups."""
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 4, 2, groups=2), nn.Flatten(),
        nn.Linear(4, 10),
    )  # fmt: skip


class Transposed(nn.Module):
    """A transposed convolution, which has its inputs in the first dimension, before a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.up(torch.relu(self.down(x))))).mean((2, 3)))


class InPlace(nn.Module):
    """Activations and a residual addition that write into what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        y = self.norm(self.second(x))
        y += x
        return self.head(self.act(y).mean((2, 3)))


class ComputedBias(nn.Module):
    """A convolution whose bias is computed from a parameter, before a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.plain = nn.Conv2d(8, 8, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(F.conv2d(x, self.conv.weight, self.conv.bias * 2)))  # type: ignore[operator]
        return self.head(torch.relu(self.norm2(self.plain(x))).mean((2, 3)))


class NormTwice(nn.Module):
    """One batch norm after two layers, and one layer before two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.third = nn.Conv2d(6, 6, 1)
        self.norm, self.left, self.right = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.second(torch.relu(self.norm(self.first(x))))))
        x = self.third(x)
        return self.head((torch.relu(self.left(x)) + torch.relu(self.right(x))).mean((2, 3)))


class DepthwiseNorm(nn.Module):
    """Pointwise, depthwise and grouped convolutions, each with a batch norm, as in MobileNets."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip((self.expand, self.depthwise, self.grouped), self.norms, strict=True):
            x = F.relu6(norm(layer(x)))
        return self.head(x.mean((2, 3)))


class TiedAndShared(nn.Module):
    """One weight under two names, one of them in a layer that is called twice, and read transposed at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)
        self.second.weight = self.first.weight
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(torch.relu(self.second(x))))
        return self.head(x @ self.first.weight)


class ManyEnds(nn.Module):
    """Two inputs and four outputs; one output is an intermediate value of another, and one is not a number."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(24, 8), nn.Linear(7, 8)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        features = torch.relu(torch.cat([self.left(x), self.right(y)], dim=1))
        logits = self.head(features)
        return {"logits": logits, "features": features, "shares": logits.softmax(1), "decision": logits.argmax(1)}


class NoBatch(nn.Module):
    """An input that has no batch dimension scales the features."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(24, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)) * scale)


class Frozen(nn.Module):
    """A layer and a batch norm that do not train, and parameters that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(24, 16), nn.BatchNorm1d(16)
        self.middle, self.unused, self.head = nn.Linear(16, 16), nn.Linear(5, 5), nn.Linear(16, 10)
        self.body.requires_grad_(False)
        self.norm.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(torch.relu(self.norm(self.body(x))))))


class ComputedWeight(nn.Module):
    """Weights that are computed: normalised, held by a buffer, cut out of a larger one."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(24, 16))
        self.fixed: Tensor
        self.register_buffer("fixed", torch.randn(16, 16) / 4)
        self.bank = nn.Parameter(torch.randn(2, 16, 16) / 4)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(F.linear(torch.relu(self.normed(x)), self.fixed))
        return self.head(torch.relu(x @ self.bank[1]))


def recurrent(kind: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
    """Builds a model with a recurrent layer of a kind that reads forwards and backwards."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = kind(8, 6, batch_first=True, bidirectional=True)
            self.head = nn.Linear(12, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cells(x)[0][:, -1])

    return Recurrent


class AttentionNorm(nn.Module):
    """A block of attention made of linear layers, with layer norms, residual additions and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.feed = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        shares = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        x = x + self.out((shares @ v).transpose(1, 2).flatten(2))
        return self.head((x + self.feed(self.norm2(x))).mean(1))


class TokenTable(nn.Module):
    """Tokens through a table with positions; the last product reads the table again."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.positions = nn.Parameter(torch.randn(5, 8) / 4)
        self.head = nn.Linear(11, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.mix(self.table(x) + self.positions))
        return self.head(F.linear(x, self.table.weight).mean(1))


def wide_linear() -> nn.Module:
    """Linear layers wide enough for groups of outputs to leave inputs out, with dropout between them."""
    return nn.Sequential(
        nn.Linear(24, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.Dropout(0.2),
        nn.LeakyReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class WideTokens(nn.Module):
    """Wide linear layers over tokens, with a residual addition and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.down(F.gelu(self.drop(self.up(x))))).mean(1))


class WideNormed(nn.Module):
    """Layer norms that wide linear layers read: one, two, and with something else beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 64)
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(3))
        self.one, self.two, self.three = nn.Linear(64, 64, bias=False), nn.Linear(64, 64), nn.Linear(64, 64)
        self.four, self.drop, self.head = nn.Linear(64, 64), nn.Dropout(0.1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.one(self.norms[0](x))
        y = self.norms[1](x)
        x = self.drop(torch.relu(self.two(y)) + self.three(y))
        y = self.norms[2](x)
        return self.head((y + self.four(y)).mean(1))


class WideEnds(nn.Module):
    """A wide layer whose outputs are outputs of the model, so that their order is not free, after a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(24, 64), nn.LayerNorm(64), nn.Linear(64, 64)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(64, 10)
        with torch.no_grad():  # two groups of outputs that read the same inputs, interleaved
            self.second.weight[0::2, :48] = 0.0
            self.second.weight[1::2, 16:] = 0.0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.second(self.norm(torch.relu(self.first(x))))
        return {"features": features, "logits": self.head(self.drop(torch.relu(features)))}


class WideMap(nn.Module):
    """A wide convolution whose outputs are outputs of the model, so that their order is not free."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)
        with torch.no_grad():  # two groups of outputs that read the same inputs, interleaved
            self.body.weight[0::2, :48] = 0.0
            self.body.weight[1::2, 16:] = 0.0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(torch.relu(self.stem(x)))
        return {"features": features, "logits": self.head(torch.relu(features).mean((2, 3)))}


class WideConv(nn.Module):
    """Wide convolutions: strided, pointwise, with a batch norm, before a linear layer that reads the flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.norm, self.point = nn.BatchNorm2d(64), nn.Conv2d(64, 64, 1, stride=2)
        self.head = nn.Linear(64 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.body(torch.relu(self.stem(x)))))
        return self.head(torch.relu(self.point(x)).flatten(1))


class WideResidual(nn.Module):
    """Wide convolutions around a residual addition, with a depthwise one between them and one that draws."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.depthwise, self.right = nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 64, 1)
        self.drop, self.head = nn.Dropout2d(0.2), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.right(torch.relu(self.depthwise(torch.relu(self.left(x)))))
        return self.head(self.drop(x).mean((2, 3)))


def wide_sequence() -> nn.Module:
    """Wide 1-d convolutions with a batch norm."""
    return nn.Sequential(
        nn.Conv1d(3, 64, 3), nn.BatchNorm1d(64), nn.ReLU(), nn.Conv1d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv1d(64, 64, 3),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def unread() -> nn.Module:
    """Linear layers with outputs that no layer reads, in scattered places, and dropout."""
    model = nn.Sequential(
        nn.Linear(24, 64), nn.LeakyReLU(), nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 64)
    )
    with torch.no_grad():
        for place in (2, 5):
            weight: Any = model[place].weight
            weight[:, 1::2] = 0.0
            weight[:, ::8] = 0.0
    return nn.Sequential(*model, nn.ReLU(), nn.Linear(64, 10))


def with_random_norms(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a model whose norms have a scale, a shift and statistics that change what flows through them."""
    model = build()
    with torch.no_grad():
        for module in (m for m in model.modules() if "Norm" in type(m).__name__):
            for name, low, high in (
                ("weight", 0.5, 1.5),
                ("bias", -0.5, 0.5),
                ("running_mean", -0.5, 0.5),
                ("running_var", 0.5, 1.5),
            ):
                value = getattr(module, name, None)
                if isinstance(value, Tensor):
                    value.uniform_(low, high)
    return model
