"""Heads that compute probabilities with a matrix: of the scores, or of the log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify.heads.base import Call, Fitted, Head, HeldOut, State
from sparsify.heads.scaling import Scaling, doubts, usable
from sparsify.parts.matrix_scaling import choose_regularisation, fit_matrix_scaling
from sparsify.tasks import Shape, Task

LEAST = math.log(1e-12)
"""Smallest log-probability that `Dirichlet` reads."""
LOWEST = -1e30
"""Smallest score that `Matrix` reads: the score -inf of a class that is ruled out would make a product with 0 NaN."""
aten = torch.ops.aten


@dataclass(frozen=True)
class Matrix(Scaling):
    """A regularised matrix W and bias b: softmax(W z + b), for up to 200 classes (Guo et al. 2017, section 4.2). It may change decisions.

    The entries beside the diagonal of W and the biases are pulled to 0 (ODIR, Kull et al. 2019, arXiv:1910.12656), as strongly as 5-fold
    cross-validation on the held-out samples says. The buffer ``matrix`` is W transposed, [K, K].
    """

    name: ClassVar = "matrix"
    buffers: ClassVar = {"matrix": 2, "bias": 1}

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        classes = int(shape[1])
        return {"matrix": torch.eye(classes), "bias": torch.zeros(classes)}

    def scaled(self, call: Call, output: Any, state: Mapping[str, Any]) -> Any:
        finite = call(aten.clamp.default, output, LOWEST)
        return call(aten.add.Tensor, call(aten.mm.default, finite, state["matrix"]), state["bias"])

    def fit(self, held: HeldOut, before: State) -> Fitted:
        scores, answers = held.judged
        matrix, bias = _fitted(scores, answers)
        return Fitted({"matrix": matrix, "bias": bias}, doubts(held))


@dataclass(frozen=True)
class Dirichlet(Head):
    """Like `matrix`, but for log-probabilities: softmax(W log p + b) (Kull et al. 2019, arXiv:1910.12656). It may change decisions.

    W and b are regularised and chosen as those of `Matrix`; log p is at least log(1e-12). The buffer ``powers`` is W transposed, [K, K].

    Examples:
        >>> import torch
        >>> from sparsify.heads import Dirichlet, run
        >>> from sparsify.tasks import Classification
        >>> head, logits = Dirichlet(), torch.tensor([[2.0, 0.0]])
        >>> state = {"powers": torch.eye(2) / 2, "offset": torch.zeros(2)}
        >>> (probabilities,) = head.apply(run, logits, state, Classification)
        >>> torch.allclose(probabilities, (logits / 2).softmax(1))
        True
    """

    name: ClassVar = "dirichlet"
    outputs: ClassVar = ("probabilities",)
    buffers: ClassVar = {"powers": 2, "offset": 1}
    unfitted: ClassVar = "the probabilities are those of the model as trained"

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        classes = int(shape[1])
        return {"powers": torch.eye(classes), "offset": torch.zeros(classes)}

    def apply(self, call: Call, output: Any, state: Mapping[str, Any], task: Task | type[Task]) -> tuple[Any, ...]:
        logs = call(aten.clamp.default, call(aten.log_softmax.int, output, task.class_dim), LEAST)
        scaled = call(aten.add.Tensor, call(aten.mm.default, logs, state["powers"]), state["offset"])
        return (call(aten.softmax.int, scaled, task.class_dim),)

    def fit(self, held: HeldOut, before: State) -> Fitted:
        scores, answers = held.judged
        matrix, bias = _fitted(scores.log_softmax(1).clamp_min(LEAST), answers)
        return Fitted({"powers": matrix, "offset": bias}, doubts(held))


def _fitted(scores: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Find the transposed matrix [K, K] and the bias [K]."""
    off_diagonal, intercept = choose_regularisation(scores, answers)
    matrix, bias = fit_matrix_scaling(scores, answers, off_diagonal=off_diagonal, intercept=intercept)
    return usable(matrix.T.contiguous()), usable(bias)
