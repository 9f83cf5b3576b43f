"""RigL in your own training loop: the three lines marked `added` make it sparse.

Run: python examples/own_loop.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

import sparsify as sp


def main(epochs: int = 20) -> tuple[float, float]:
    """Train on scikit-learn's digits; returns (test accuracy, density)."""
    torch.manual_seed(0)
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images))
    train, test = order[:1437], order[1437:]

    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    steps = epochs * (len(train) // 64)

    program = sp.trace(model, (images[:2],))  # added
    method = sp.methods.rigl(density=0.1, update_every=20)
    trainer = sp.attach(method, program, optimizer, total_steps=steps)  # added

    program.train()
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64)[: len(train) // 64]:
            loss = nn.functional.cross_entropy(program(images[batch]), labels[batch])
            loss.backward()
            trainer.step()  # added, in place of optimizer.step()
            optimizer.zero_grad()

    program.eval()
    with torch.no_grad():
        accuracy = float((program(images[test]).argmax(1) == labels[test]).float().mean())
    return accuracy, trainer.density


if __name__ == "__main__":
    accuracy, density = main()
    print(f"test accuracy {accuracy:.3f} at density {density:.4f}")
