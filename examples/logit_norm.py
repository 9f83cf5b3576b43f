"""LogitNorm around any method: cross-entropy of logits of a fixed length (Wei et al. 2022, arXiv:2205.09310).

    python examples/logit_norm.py

trains RigL on the digits with and without it. The loss is all that changes: predictions are the softmax of the logits as they are.
This is how to write a loss of your own; the package has this one as ``logit-norm``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sparsify as sp
from sparsify.errors import RecipeError

if TYPE_CHECKING:
    from sparsify.methods.base import Method


@dataclasses.dataclass(frozen=True)
class LogitNorm:
    """An objective without memory: cross-entropy of logits / (tau · (their L2 norm + 1e-7))."""

    tau: float

    def init(self) -> None: ...

    def observe(self, logits: Tensor, labels: Tensor, state: None, step: int) -> None: ...

    def loss(self, logits: Tensor, labels: Tensor, state: None) -> Tensor:
        norms = logits.norm(dim=1, keepdim=True) + 1e-7
        return nn.functional.cross_entropy(logits / (self.tau * norms), labels)

    def readings(self, state: None) -> dict[str, float]:
        return {}


def logit_norm(base: Method, *, tau: float = 0.04) -> Method:
    """Train ``base`` with LogitNorm; ``tau``, above 0, is 0.04 as published for CIFAR-10."""
    if not 0.0 < tau < math.inf:
        raise RecipeError(f"tau should be above 0 and finite, found {tau}.")
    if base.objective is not None:
        raise RecipeError(f"logit-norm({base.name}): {base.name!r} has a loss of its own; wrap a method without one.")
    return dataclasses.replace(base, name=f"logit-norm({base.name})", objective=lambda total: LogitNorm(tau))


def main() -> None:
    """Train RigL with and without LogitNorm."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    rigl = sp.methods.build("rigl", {"density": 0.1, "update_every": 20})
    for method in (rigl, logit_norm(rigl)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        program = sp.trace(model, (x[:64],)).train()
        optimizer = torch.optim.SGD(program.parameters(), lr=0.1, momentum=0.9)
        trainer = sp.attach(method, program, optimizer, total_steps=20 * 20)
        for _ in range(20):
            for batch in torch.randperm(1280).split(64):
                trainer.loss(program(x[batch]), y[batch]).backward()
                trainer.step()
                optimizer.zero_grad()
        trainer.finish()
        with torch.no_grad():
            confidence, predicted = program.eval()(x[1280:]).softmax(dim=1).max(dim=1)
        accuracy = (predicted == y[1280:]).float().mean()
        print(f"{method.name:<16} accuracy {accuracy:.3f}, mean max-probability {confidence.mean():.3f}")


if __name__ == "__main__":
    main()
