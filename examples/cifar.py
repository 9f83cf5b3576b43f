"""Residual networks for 32 x 32 colour images (He et al. 2016, arXiv:1512.03385, section 4.2).

sparsify run examples/cifar.py:resnet20 --data cifar10.npz --method rigl --sparsity 0.9 --epochs 5 --baseline --out runs/cifar
sparsify run examples/cifar.py:wide_resnet --data cifar10.npz --pattern grouped:32 --sparsity 0.9 --baseline --epochs 5 --out runs/wide
sparsify bench runs/wide/dense.onnx runs/wide/model.onnx
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages of blocks that halve the image from the second on, and a linear head.

    Args:
        blocks: of each stage.
        widths: channels of each stage.
        stem_stride: 2 computes everything at half the resolution, at a quarter of the cost.
        classes: outputs.
    """

    def __init__(
        self, *, blocks: tuple[int, ...], widths: tuple[int, ...], stem_stride: int = 1, classes: int = 10
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, stride=stem_stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        channels = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            for i in range(count):
                layers.append(Block(channels, width, 2 if stage and i == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.bn(self.stem(x))))
        return self.head(x.mean((2, 3)))


def resnet20() -> nn.Module:
    """0.27 million parameters, 41 million MACs."""
    return ResNet(blocks=(3, 3, 3), widths=(16, 32, 64))


def wide_resnet(width: float = 1.0) -> nn.Module:
    """2.4 million parameters, 67 million MACs: 64 to 256 channels, enough for groups of outputs to leave inputs out.

    Args:
        width: factor of the channels, rounded to a multiple of 8; the narrower rival of a sparse network.
    """
    widths = tuple(max(8, 8 * round(channels * width / 8)) for channels in (64, 128, 256))
    return ResNet(blocks=(1, 1, 2), widths=widths, stem_stride=2)
