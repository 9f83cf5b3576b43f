"""Heads that add ``ood_score`` from the logits: how well an input belongs to the training distribution; higher = more in-distribution."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify.heads.base import Call, Fitted, Head, HeldOut, State, size_of
from sparsify.tasks import Task

COLDEST, HOTTEST = 1e-4, 1e4
"""Temperatures within which a file, which computes in float32, keeps the digits of a score."""
aten = torch.ops.aten


@dataclass(frozen=True)
class Outlier(Head):
    """A head that adds ``ood_score``, [N]; higher = more in-distribution. It reads logits as trained, before any calibration."""

    outputs: ClassVar = ("ood_score",)
    beside: ClassVar = ("ood_score",)
    buffers: ClassVar[Mapping[str, int | None]] = {}
    tasks: ClassVar = ("classification",)

    @abstractmethod
    def score(self, call: Call, read: Any, state: Mapping[str, Any]) -> Any:
        """Compute the score of each sample, [N], from what the head reads."""

    def apply(self, call: Call, output: Any, state: Mapping[str, Any], task: Task | type[Task]) -> tuple[Any, ...]:
        return (self.score(call, output, state),)

    def told(self, before: State, fitted: Fitted) -> str:
        return f"{self.name} fitted again"


@dataclass(frozen=True)
class LogitScore(Outlier):
    """A score that has nothing to fit."""

    def identity(self, shape: Any) -> dict[str, Tensor]:
        return {}

    def fit(self, held: HeldOut, before: State) -> Fitted:
        return Fitted({})


@dataclass(frozen=True)
class MaximumProbability(LogitScore):
    """The highest softmax probability (Hendrycks and Gimpel 2017, arXiv:1610.02136)."""

    name: ClassVar = "msp"

    def score(self, call: Call, read: Any, state: Mapping[str, Any]) -> Any:
        return call(aten.amax.default, call(aten.softmax.int, read, 1), [1])


@dataclass(frozen=True)
class MaximumLogit(LogitScore):
    """The highest logit (Hendrycks et al. 2022, arXiv:1911.11132)."""

    name: ClassVar = "max-logit"

    def score(self, call: Call, read: Any, state: Mapping[str, Any]) -> Any:
        return call(aten.amax.default, read, [1])


@dataclass(frozen=True)
class Energy(LogitScore):
    """T · ln of the sum of exp(z / T): the negative free energy (Liu et al. 2020, arXiv:2010.03759).

    Attributes:
        temperature: T, from 1e-4 to 1e4.
    """

    name: ClassVar = "energy"

    temperature: float = 1.0

    def __post_init__(self) -> None:
        usable_temperature(self.temperature)

    def score(self, call: Call, read: Any, state: Mapping[str, Any]) -> Any:
        return free_energy(call, read, self.temperature)


@dataclass(frozen=True)
class GeneralisedEntropy(LogitScore):
    """Minus the sum of p^gamma · (1 - p)^gamma over the most probable classes (GEN; Liu et al. 2023, CVPR).

    Attributes:
        gamma: exponent, in (0, 1].
        most: number of classes, at least 1; all if there are fewer.
    """

    name: ClassVar = "gen"

    gamma: float = 0.1
    most: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma is an exponent in (0, 1]; found {self.gamma:g}")
        if self.most < 1:
            raise ValueError(f"most is a number of classes, at least 1; found {self.most}")

    def score(self, call: Call, read: Any, state: Mapping[str, Any]) -> Any:
        table = call(aten.softmax.int, read, 1)
        if self.most < size_of(read, 1):
            table = call(getitem, call(aten.topk.default, table, self.most), 0)
        spread = call(aten.mul.Tensor, table, call(aten.rsub.Scalar, table, 1))
        return call(aten.neg.default, call(aten.sum.dim_IntList, call(aten.pow.Tensor_Scalar, spread, self.gamma), [1]))


@dataclass(frozen=True)
class Odin(LogitScore):
    """The highest probability at a high temperature (Liang et al. 2018, arXiv:1706.02690), without the step along the input gradient.

    A file can compute no gradient. The score is T · (ln max softmax(z / T) + ln K), which has the same order and does not lose its digits:
    for large T it is the highest logit minus the mean of all.

    Attributes:
        temperature: T, from 1e-4 to 1e4.
    """

    name: ClassVar = "odin"

    temperature: float = 1000.0

    def __post_init__(self) -> None:
        usable_temperature(self.temperature)

    def score(self, call: Call, read: Any, state: Mapping[str, Any]) -> Any:
        above = call(aten.sub.Tensor, read, call(aten.amax.default, read, [1], True))
        mean = call(aten.mean.dim, call(aten.exp.default, call(aten.div.Scalar, above, self.temperature)), [1])
        return call(aten.mul.Scalar, call(aten.log.default, mean), -self.temperature)


def free_energy(call: Call, logits: Any, temperature: float = 1.0) -> Any:
    """Compute T · ln of the sum of exp(z / T) of logits [N, K]."""
    if temperature == 1:
        return call(aten.logsumexp.default, logits, [1])
    scaled = call(aten.logsumexp.default, call(aten.div.Scalar, logits, temperature), [1])
    return call(aten.mul.Scalar, scaled, temperature)


def usable_temperature(value: float) -> None:
    """Refuse a temperature that leaves nothing of a score in float32.

    Raises:
        ValueError: If it is not from `COLDEST` to `HOTTEST`.
    """
    if not COLDEST <= value <= HOTTEST:
        raise ValueError(f"temperature is a number from {COLDEST:g} to {HOTTEST:g}; found {value:g}")
