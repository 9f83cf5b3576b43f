"""Heads that compute probabilities by scaling the scores and applying the link of the task, such as the softmax."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify.heads.base import Call, Fitted, Head, HeldOut, State
from sparsify.parts.calibrators import NotIdentifiableError, fit_temperature, fit_vector_scaling
from sparsify.tasks import Shape, Task

FEW = 5
"""Held-out samples per class below which a fit is called rough."""
aten = torch.ops.aten


@dataclass(frozen=True)
class Scaling(Head):
    """A head that adds ``probabilities``: the sigmoid or softmax, as the task says, of scaled scores."""

    outputs: ClassVar = ("probabilities",)
    unfitted: ClassVar = "the probabilities are those of the model as trained"

    @abstractmethod
    def scaled(self, call: Call, output: Any, state: Mapping[str, Any]) -> Any:
        """Compute the scores whose softmax or sigmoid is calibrated, of the shape of ``output``; with `identity`, the output itself.

        Args:
            call: applies an ATen operator.
            output: scores that the task reads, [N, ...].
            state: the buffers by name.
        """

    def apply(self, call: Call, output: Any, state: Mapping[str, Any], task: Task | type[Task]) -> tuple[Any, ...]:
        scaled = self.scaled(call, output, state)
        if task.link == "sigmoid":
            return (call(aten.sigmoid.default, scaled),)
        return (call(aten.softmax.int, scaled, task.class_dim),)


@dataclass(frozen=True)
class Temperature(Scaling):
    """One temperature T for all scores z: softmax(z / T), or sigmoid(z / T). It keeps every decision (Guo et al. 2017, section 4.2).

    Examples:
        >>> import torch
        >>> from sparsify.heads import Temperature, run
        >>> from sparsify.tasks import Binary
        >>> (probabilities,) = Temperature().apply(run, torch.tensor([4.0]), {"temperature": torch.tensor(2.0)}, Binary)
        >>> round(float(probabilities), 4)
        0.8808
    """

    name: ClassVar = "temperature"
    buffers: ClassVar = {"temperature": 0}

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        return {"temperature": torch.ones(())}

    def scaled(self, call: Call, output: Any, state: Mapping[str, Any]) -> Any:
        return call(aten.div.Tensor, output, state["temperature"])

    def fit(self, held: HeldOut, before: State) -> Fitted:
        found = torch.tensor(fit_temperature(*held.judged), dtype=torch.float64)
        return Fitted({"temperature": usable(found)}, rough(held))

    def told(self, before: State, fitted: Fitted) -> str:
        old, new = (float(state["temperature"]) for state in (before, fitted.values))
        return f"temperature fitted again: {old:.4f} before, {new:.4f} after"


@dataclass(frozen=True)
class LabelTemperature(Scaling):
    """A temperature for each of K labels: sigmoid(z / T), T [K]. A temperature that the samples do not determine stays unchanged."""

    name: ClassVar = "label-temperature"
    buffers: ClassVar = {"temperature": 1}

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        return {"temperature": torch.ones(int(shape[1]))}

    def scaled(self, call: Call, output: Any, state: Mapping[str, Any]) -> Any:
        return call(aten.div.Tensor, output, state["temperature"])

    def fit(self, held: HeldOut, before: State) -> Fitted:
        found, left, labels = before["temperature"].double().clone(), list[int](), held.output.shape[1]
        answers = held.task.answers(held.target)
        assert answers is not None, "a task of labels decides about each"
        for label, (z, right) in enumerate(zip(held.output.T, answers.reshape(-1, labels).T, strict=True)):
            try:
                found[label] = fit_temperature(torch.stack([torch.zeros_like(z), z], 1), right)
            except ValueError:
                left.append(label)
        if len(left) == labels:
            raise ValueError("the samples determine the temperature of no label")
        if not left:
            return Fitted({"temperature": found})
        shown = ", ".join(map(str, left[:8])) + (" ..." if len(left) > 8 else "")
        note = f"not fitted for {len(left)} of {labels} labels ({shown}), whose samples do not determine it"
        return Fitted({"temperature": found}, note)

    def told(self, before: State, fitted: Fitted) -> str:
        text = f"temperatures of {len(before['temperature'])} labels fitted again"
        return f"{text} ({fitted.note})" if fitted.note else text


@dataclass(frozen=True)
class Vector(Scaling):
    """A scale a and a bias b for each of K classes: softmax(a * z + b) (Guo et al. 2017, section 4.2)."""

    name: ClassVar = "vector"
    buffers: ClassVar = {"scale": 1, "bias": 1}

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        return {"scale": torch.ones(int(shape[1])), "bias": torch.zeros(int(shape[1]))}

    def scaled(self, call: Call, output: Any, state: Mapping[str, Any]) -> Any:
        return call(aten.add.Tensor, call(aten.mul.Tensor, output, state["scale"]), state["bias"])

    def fit(self, held: HeldOut, before: State) -> Fitted:
        scores, answers = held.judged
        scale, bias = map(usable, fit_vector_scaling(scores, answers))
        return Fitted({"scale": scale, "bias": bias}, doubts(held))

    def told(self, before: State, fitted: Fitted) -> str:
        return "vector scaling fitted again"


def rough(held: HeldOut) -> str | None:
    """Return a note if the fit has few samples per class; None if it has enough."""
    scores, answers = held.judged
    if len(answers) >= FEW * scores.shape[1]:
        return None
    return f"a rough estimate, from {len(answers)} held-out samples of {scores.shape[1]} classes"


def doubts(held: HeldOut) -> str | None:
    """Return why a fit that is pulled towards the identity deserves little trust; None if there is no reason to doubt it."""
    try:
        fit_temperature(*held.judged)
    except NotIdentifiableError as error:
        return f"held only by its pull towards 1 and 0: {error}"
    return rough(held)


def usable(values: Tensor) -> Tensor:
    """Return the values if single precision can hold them.

    Raises:
        ValueError: If it cannot.
    """
    if not bool(values.float().isfinite().all()):
        raise ValueError("the optimum is not finite")
    return values
