"""A small model for each task and kind of input that docs/tasks.md shows; benchmarks/tasks.py trains and measures all of them.

sparsify run examples/tasks.py:table --data diabetes.npz --task regression --pattern grouped:16 --sparsity 0.9 --out runs/diabetes
sparsify run examples/tasks.py:characters --data text.npz --task sequence --dynamic ids:1=T --dynamic T=1..128 --out runs/text
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn


def layers(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    found: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        found += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*found[:-1])


def table() -> nn.Module:
    """Regression: a number of 10 columns."""
    return layers(10, 64, 64, 1)


def questions() -> nn.Module:
    """Multilabel: four questions about an 8 x 8 image."""
    return nn.Sequential(nn.Flatten(), layers(64, 128, 64, 4))


def verdict() -> nn.Module:
    """Binary: yes or no of 30 columns."""
    return layers(30, 64, 64, 1)


class Pixels(nn.Module):
    """Dense prediction: 11 scores for each pixel of a 28 x 28 image, from its surroundings and from the image as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.whole, self.head = layers(64 * 49, 64, 32), nn.Conv2d(64, 11, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = torch.relu(self.near(x))
        far = torch.max_pool2d(torch.relu(self.far(torch.max_pool2d(near, 2))), 2)
        whole = self.whole(far.flatten(1))[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return self.head(torch.cat([near, whole], 1))


class Block(nn.Module):
    """A pre-norm transformer layer that does not look ahead."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        later = torch.triu(torch.ones(t, t, dtype=torch.bool, device=x.device), 1)
        scores = (q @ k.transpose(-1, -2) * (c // self.heads) ** -0.5).masked_fill(later, float("-inf"))
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, c))
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class Characters(nn.Module):
    """Sequence: scores of the next of 65 characters after each of up to 128."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(65, width), nn.Parameter(torch.randn(128, width) / 10)
        self.blocks, self.norm = nn.Sequential(Block(width, 4), Block(width, 4)), nn.LayerNorm(width)
        self.head = nn.Linear(width, 65)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.places[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def bert() -> Any:
    """Classification of up to 48 words, fed with the dictionaries of a tokenizer: a small BERT of Hugging Face with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=2000, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=48,
        num_labels=4,
    )  # fmt: skip
    return BertForSequenceClassification(config)


class Pair(nn.Module):
    """Two inputs: the sum of two digits, 0 to 18, from their images; one encoder reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.head = layers(64, 64, 64), layers(128, 64, 19)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.relu(torch.cat([self.encode(left.flatten(1)), self.encode(right.flatten(1))], 1)))


class Spoken(nn.Module):
    """Classification of sounds, frames [N, T, 32]: a recurrent layer, and its mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(32, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.layer(frames)[0].mean(1))
