"""A small CNN for 28 x 28 grey images.

sparsify run examples/fashion_mnist.py:cnn --data fashion_mnist.npz --method rigl --sparsity 0.95 --epochs 5 --out runs/fashion
"""

from __future__ import annotations

from torch import nn


def cnn() -> nn.Module:
    """Two convolutions with pooling and two linear layers, 421,642 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
