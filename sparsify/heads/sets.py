"""Heads that add ``prediction_set``: the classes that are plausible, so that the right one is among them with a chosen probability."""

from __future__ import annotations

import math
import operator
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify.heads.base import Call, Fitted, Head, HeldOut, State, size_of
from sparsify.heads.scaling import usable
from sparsify.parts import prediction_sets as sets
from sparsify.tasks import Shape, Task

EVERY = 1e6
"""Threshold that the score of every class is below."""
NEVER = 2.0
"""More than any probability."""
TUNING = 0.3
"""Share of the held-out samples on which RAPS chooses its penalty, and which its threshold is not computed from."""
aten = torch.ops.aten


@dataclass(frozen=True)
class PredictionSet(Head):
    """A head that adds ``prediction_set``, bool [N, K]: the classes whose score is at most a threshold.

    It reads the calibrated probabilities. The threshold makes the set of a new sample hold its right class with a probability of at least
    ``coverage`` (split conformal prediction, `sparsify.parts.prediction_sets`), averaged over samples like the held-out ones; not for
    each class or sample by itself. A set may be empty.

    Attributes:
        coverage: the probability, in (0, 1).
    """

    outputs: ClassVar = ("prediction_set",)
    beside: ClassVar = ("prediction_set",)
    reads: ClassVar = ("probabilities",)
    tasks: ClassVar = ("classification",)
    unfitted: ClassVar = "every set holds all classes"

    coverage: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.coverage < 1:
            raise ValueError(
                f"coverage is the share of sets that should hold the right class, in (0, 1); found {self.coverage:g}"
            )

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        return {"threshold": torch.tensor(EVERY)}

    @abstractmethod
    def scores(self, probabilities: Tensor, state: State) -> Tensor:
        """Compute the score of each class, float64 [N, K]; a set holds those that are at most the threshold."""

    def fitted(self, probabilities: Tensor, answers: Tensor, state: State, limit: Tensor, note: str | None) -> Fitted:
        """Return a fit, with what its sets are like on the held-out samples."""
        inside = self.scores(probabilities, state) <= limit
        sizes = inside.double().sum(1)
        figures = {
            "coverage": float(inside.gather(1, answers[:, None]).double().mean()),
            "mean_size": float(sizes.mean()),
            "empty": float((sizes == 0).double().mean()),
        }
        return Fitted({**state, "threshold": limit}, note, figures)

    def fit(self, held: HeldOut, before: State) -> Fitted:
        table, answers = held.read(self), held.judged[1]
        limit = _finite(sets.threshold(self.scores(table, before).gather(1, answers[:, None])[:, 0], self.coverage))
        return self.fitted(table, answers, {}, limit, sets.few(len(answers), self.coverage))

    def told(self, before: State, fitted: Fitted) -> str:
        return "sets fitted again"


@dataclass(frozen=True)
class Ambiguity(PredictionSet):
    """Sets of the classes with a probability of at least 1 - threshold."""

    def scores(self, probabilities: Tensor, state: State) -> Tensor:
        return sets.lac_scores(probabilities)

    def apply(self, call: Call, output: Any, state: Mapping[str, Any], task: Task | type[Task]) -> tuple[Any, ...]:
        return (call(aten.le.Tensor, call(aten.rsub.Scalar, output, 1), state["threshold"]),)


@dataclass(frozen=True)
class Lac(Ambiguity):
    """The smallest sets on average: classes with a probability of at least 1 - threshold (Sadinle et al. 2019, arXiv:1609.00451)."""

    name: ClassVar = "lac"
    buffers: ClassVar = {"threshold": 0}


@dataclass(frozen=True)
class ClassLac(Ambiguity):
    """`Lac` with a threshold for each class, which covers each class by itself (Mondrian; Vovk et al. 2005, section 4.5).

    For networks whose errors are unequal over the classes, as pruning makes them. Each class needs as many held-out samples as `Lac`
    needs in all; a class with fewer is in every set.
    """

    name: ClassVar = "class-lac"
    buffers: ClassVar = {"threshold": 1}

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        return {"threshold": torch.full((int(shape[1]),), EVERY)}

    def fit(self, held: HeldOut, before: State) -> Fitted:
        table, answers = held.read(self), held.judged[1]
        right, classes = self.scores(table, before).gather(1, answers[:, None])[:, 0], table.shape[1]
        counts = answers.bincount(minlength=classes)
        limits = [sets.threshold(right[answers == k], self.coverage) if counts[k] else math.inf for k in range(classes)]
        lacking = [k for k, limit in enumerate(limits) if limit == math.inf]
        listed = ", ".join(map(str, lacking[:8])) + (" ..." if len(lacking) > 8 else "")
        note = f"not possible for {len(lacking)} of {classes} classes ({listed}), which have too few held-out samples: every set holds them"
        return self.fitted(table, answers, {}, torch.stack([_finite(one) for one in limits]), note if lacking else None)


@dataclass(frozen=True)
class Aps(PredictionSet):
    """Larger sets for harder samples: the most probable classes, up to a mass of the threshold (Romano et al. 2020, arXiv:2006.02544).

    In its deterministic form: a class counts with its whole mass.
    """

    name: ClassVar = "aps"
    buffers: ClassVar = {"threshold": 0}

    def scores(self, probabilities: Tensor, state: State) -> Tensor:
        return sets.adaptive_scores(probabilities)

    def apply(self, call: Call, output: Any, state: Mapping[str, Any], task: Task | type[Task]) -> tuple[Any, ...]:
        return (_most_probable(call, output, None, state["threshold"]),)


@dataclass(frozen=True)
class Raps(PredictionSet):
    """`Aps` with a penalty for each rank beyond the first ``free``, which avoids very large sets (Angelopoulos et al., arXiv:2009.14193).

    Attributes:
        penalty: added to the score per rank; 0: chosen on 30 % of the held-out samples, which the threshold is not computed from, or, if
            these are fewer than 20, 0.01 beyond the first rank.
        free: ranks without a penalty; 0: chosen with the penalty.
    """

    name: ClassVar = "raps"
    buffers: ClassVar = {"threshold": 0, "charge": 1}

    penalty: float = 0.0
    free: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.penalty < math.inf:
            raise ValueError(f"penalty is added per rank, and at least 0; found {self.penalty:g}")
        if self.free < 0 or (self.free and not self.penalty):
            raise ValueError(
                f"free is a number of ranks without the penalty that is given; found {self.free} with penalty {self.penalty:g}"
            )

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        return {"threshold": torch.tensor(EVERY), "charge": torch.zeros(int(shape[1]))}

    def scores(self, probabilities: Tensor, state: State) -> Tensor:
        return sets.adaptive_scores(probabilities, state["charge"].double())

    def apply(self, call: Call, output: Any, state: Mapping[str, Any], task: Task | type[Task]) -> tuple[Any, ...]:
        return (_most_probable(call, output, state["charge"], state["threshold"]),)

    def fit(self, held: HeldOut, before: State) -> Fitted:
        table, answers = held.read(self), held.judged[1]
        penalty, free = self.penalty, self.free
        if not penalty:
            order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(0))
            part, rest = order[: int(TUNING * len(order))], order[int(TUNING * len(order)) :]
            penalty, free = sets.USUAL
            if len(part) >= sets.LEAST_TUNING:
                penalty, free = sets.tuned(table[part], answers[part], self.coverage)
                table, answers = table[rest], answers[rest]
        state = {"charge": usable(sets.charges(table.shape[1], penalty, free))}
        limit = _finite(sets.threshold(self.scores(table, state).gather(1, answers[:, None])[:, 0], self.coverage))
        found = self.fitted(table, answers, state, limit, sets.few(len(answers), self.coverage))
        return Fitted(
            {name: found.values[name] for name in self.buffers},
            found.note,
            {**found.figures, "penalty": penalty, "free": float(free)},
        )


def _most_probable(call: Call, table: Any, charge: Any, limit: Any) -> Any:
    """Return which classes have a score (`sparsify.parts.prediction_sets.adaptive_scores`) of at most ``limit``.

    Scores rise with the rank, so these are the classes that are at least as probable as the last one within the limit.
    """
    ordered = call(operator.getitem, call(aten.topk.default, table, size_of(table, 1)), 0)
    mass = call(aten.cumsum.default, ordered, 1)
    inside = call(aten.le.Tensor, mass if charge is None else call(aten.add.Tensor, mass, charge), limit)
    least = call(aten.amin.default, call(aten.where.ScalarOther, inside, ordered, NEVER), [1], True)
    return call(aten.ge.Tensor, table, least)


def _finite(limit: float) -> Tensor:
    return torch.tensor(min(limit, EVERY), dtype=torch.float64)
