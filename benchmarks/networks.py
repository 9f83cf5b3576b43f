"""The networks the deployment benchmark times, with random weights; written out, because only their shapes matter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

CLASSES = 1000


class MLP(nn.Module):
    """784 -> 1024 four times -> 10."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        hidden = scaled(1024, width)
        sizes = [784, hidden, hidden, hidden, hidden]
        self.body = nn.Sequential(
            *(layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU()))
        )
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch norm, whose statistics are those of the last batch."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs, momentum=1.0))


class Residual(nn.Module):
    """A basic block (two 3 x 3) or a bottleneck (1 x 1, 3 x 3, 1 x 1) (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        bottleneck = inner != outputs
        shapes = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
        shapes = shapes if bottleneck else [(inputs, inner, 3, stride), (inner, outputs, 3, 1)]
        self.body = nn.Sequential(*(conv(*shape) for shape in shapes))
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for index, part in enumerate(self.body):
            y = part(y) if index + 1 == len(self.body) else torch.relu(part(y))
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, blocks: tuple[int, ...], expansion: int, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(64, width)
        self.stem = nn.Sequential(conv(3, channels, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        layers: list[nn.Module] = []
        for stage, count in enumerate(blocks):
            inner = scaled(64 * 2**stage, width)
            for i in range(count):
                layers.append(Residual(channels, inner, inner * expansion, 2 if stage and i == 0 else 1))
                channels = inner * expansion
        self.body, self.head = nn.Sequential(*layers), nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class MobileNetV1(nn.Module):
    """Depthwise and pointwise convolutions in turn (Howard et al. 2017, arXiv:1704.04861)."""

    PLAN = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(32, width)
        layers: list[nn.Module] = [conv(3, channels, 3, 2), nn.ReLU()]
        for outputs, stride in self.PLAN:
            outputs = scaled(outputs, width)
            layers += [conv(channels, channels, 3, stride, channels), nn.ReLU(), conv(channels, outputs, 1), nn.ReLU()]
            channels = outputs
        self.body, self.head = nn.Sequential(*layers), nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Encoder(nn.Module):
    """A pre-norm transformer block, 6 heads of 64 (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        y = self.norm1(x)
        q, k, v = (f(y).reshape(n, t, self.heads, c // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, c))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Four blocks of ViT-S over 197 tokens of width 384."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        heads = max(1, round(6 * width))
        self.embed = nn.Linear(384, 64 * heads)
        self.blocks = nn.Sequential(*(Encoder(64 * heads, heads) for _ in range(4)))
        self.head = nn.Linear(64 * heads, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)).mean(1))


def scaled(channels: int, width: float) -> int:
    """Channels times width, a multiple of 16."""
    return channels if math.isclose(width, 1.0) else max(16, 16 * round(channels * width / 16))


IMAGE = (3, 224, 224)
NETWORKS: dict[str, tuple[Callable[[float], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "mlp": (MLP, (784,), ("head.weight",)),
    "resnet18": (lambda width: ResNet((2, 2, 2, 2), 1, width), IMAGE, ("stem.*", "head.weight")),
    "resnet50": (lambda width: ResNet((3, 4, 6, 3), 4, width), IMAGE, ("stem.*", "head.weight")),
    "mobilenet": (MobileNetV1, IMAGE, ("body.0.*", "head.weight")),
    "vit": (ViT, (197, 384), ("embed.weight", "head.weight")),
}
"""Name -> (network of a width, shape of one input, globs of weights kept dense)."""
