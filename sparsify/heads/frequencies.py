"""Heads that replace the probability of each class by how often the class was right at such probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify.heads.base import Call, Fitted, Head, HeldOut, State
from sparsify.heads.scaling import rough, usable
from sparsify.parts.frequencies import (
    Ramps,
    between_blocks,
    between_centres,
    histogram_blocks,
    isotonic_blocks,
    thinned,
)
from sparsify.tasks import Shape, Task

LEAST = 1e-12
"""Smallest value that is divided by the sum. Rounding makes some frequencies of 0 slightly negative."""
aten = torch.ops.aten


@dataclass(frozen=True)
class Frequencies(Head):
    """A head that maps the probability p_k of each class to g_k(p_k), and divides by the sum over the classes.

    Each g_k is a sum of ramps (`sparsify.parts.frequencies.Ramps`), computed with standard operators. The last ramp adds p_k with the
    weight of one held-out sample, 1 / N: a class whose frequency is 0 keeps a probability above 0, and a sample for which all
    frequencies are 0 keeps those of the model. A class that no held-out sample has keeps g_k(p_k) = p_k.

    Attributes:
        knots: the most blocks that a function joins; the number of its ramps in a file, which is known before the fit.
    """

    outputs: ClassVar = ("probabilities",)
    unfitted: ClassVar = "the probabilities are those of the model as trained"
    knots: ClassVar[int]

    @abstractmethod
    def ramps(self, probabilities: Tensor, right: Tensor) -> Ramps:
        """Fit the function of a class, with at most ``knots - 1`` ramps.

        Args:
            probabilities: float64 [N], of the class.
            right: bool [N], whether it is the right one.
        """

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        classes, (base, start, rate, jump) = int(shape[1]), self.buffers
        last = torch.zeros(classes, self.knots)
        last[:, -1] = 1.0
        return {base: torch.zeros(classes), start: torch.zeros_like(last), rate: last, jump: last.clone()}

    def apply(self, call: Call, output: Any, state: Mapping[str, Any], task: Task | type[Task]) -> tuple[Any, ...]:
        base, start, rate, jump = (state[name] for name in self.buffers)
        table = call(aten.unsqueeze.default, call(aten.softmax.int, output, task.class_dim), -1)
        risen = call(aten.mul.Tensor, call(aten.sub.Tensor, table, start), rate)
        steps = call(aten.mul.Tensor, call(aten.clamp.default, risen, 0.0, 1.0), jump)
        found = call(aten.add.Tensor, call(aten.sum.dim_IntList, steps, [-1]), base)
        found = call(aten.clamp.default, found, LEAST)
        return (call(aten.div.Tensor, found, call(aten.sum.dim_IntList, found, [task.class_dim], True)),)

    def fit(self, held: HeldOut, before: State) -> Fitted:
        scores, answers = held.judged
        if len(answers.unique()) < 2:
            raise ValueError("the held-out samples are all of one class")
        values = {name: value.double().clone() for name, value in self.identity(("N", scores.shape[1])).items()}
        base, start, rate, jump = values.values()
        without = list[int]()
        for number, table in enumerate(scores.softmax(1).float().double().T):  # probabilities as a file computes them
            right = answers == number
            if not bool(right.any()):
                without.append(number)
                continue
            found = self.ramps(table, right)
            count = len(found.jump)
            base[number], jump[number, -1] = found.base, 1 / len(answers)
            start[number, :count], rate[number, :count], jump[number, :count] = found.start, found.rate, found.jump
        notes = [rough(held)]
        if without:
            shown = ", ".join(map(str, without[:8])) + (" ..." if len(without) > 8 else "")
            notes.append(
                f"not fitted for {len(without)} of {scores.shape[1]} classes ({shown}), which no held-out sample has"
            )
        return Fitted({name: usable(value) for name, value in values.items()}, "; ".join(filter(None, notes)) or None)


@dataclass(frozen=True)
class Isotonic(Frequencies):
    """An isotonic function of p for each class, divided by their sum (Zadrozny and Elkan 2002). It may change decisions.

    Pooling adjacent violators gives blocks of samples; if there are more than 64, those that differ least are joined. The function is
    linear between the mean probabilities of the blocks.
    """

    name: ClassVar = "isotonic"
    buffers: ClassVar = {"lowest": 1, "knots": 2, "slopes": 2, "rises": 2}
    knots: ClassVar = 64

    def ramps(self, probabilities: Tensor, right: Tensor) -> Ramps:
        return between_centres(thinned(isotonic_blocks(probabilities, right), self.knots))


@dataclass(frozen=True)
class Histogram(Frequencies):
    """The frequency of 15 bins of equal mass for each class, divided by their sum (Zadrozny and Elkan 2001). It may change decisions.

    Between the last sample of a bin and the first of the next one, the frequency changes linearly. A bin holds a fifteenth of all samples,
    so that with more than 15 classes, even the last bin of a class holds many samples of other classes.
    """

    name: ClassVar = "histogram"
    buffers: ClassVar = {"first": 1, "edges": 2, "rates": 2, "steps": 2}
    knots: ClassVar = 15

    def ramps(self, probabilities: Tensor, right: Tensor) -> Ramps:
        return between_blocks(histogram_blocks(probabilities, right, self.knots))
