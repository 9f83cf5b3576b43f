"""The head that is fitted to masked inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify.figures import metrics
from sparsify.heads.base import Call, Fitted, Head, HeldOut, State
from sparsify.heads.scaling import Temperature, rough, usable
from sparsify.parts.calibrators import NotIdentifiableError, fit_temperature
from sparsify.parts.input_masks import masked_inputs
from sparsify.tasks import Shape, Task
from sparsify.tasks.base import judged

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Ratios of which one is chosen; 0 is no mask, hence the temperature of `Temperature`."""
SEED = 0
"""Seed of the masks, and of the halves on which a ratio is chosen."""
KEPT = "kept as fitted to the program, because a file cannot be run on masked inputs"
BUFFER = "masked_temperature"


@dataclass(frozen=True)
class MaskedTemperature(Head):
    """A temperature T, fitted to inputs of which a random share is set to 0 (Zhu et al. 2023, arXiv:2307.12463). It keeps every decision.

    For held-out samples so few, or so easy, that the network is right about all of them: their best temperature is then 0, and that of
    their masked forms is not. T minimises the NLL of ``rounds`` masked forms of every sample; the file holds T and no mask.
    Elements are set to 0 as the program gets them, after a normalisation of the data.
    Where there are several inputs, those with floating-point values are masked.

    The sampled masks are the same in every fit. The ratio is never chosen on test data.

    Attributes:
        ratio: share of the elements that is set to 0, in [0, 1). 0: chosen from 0, 0.1, ... 0.9 by 2-fold cross-validation: T is fitted to
            the masked forms of one half of the held-out samples and judged by the NLL of the other half without masks. It is then fitted
            to all of them.
        rounds: number of masked forms of every sample, at least 1. Fewer than 20 make T noisy where there are few samples.
    """

    name: ClassVar = "masked-temperature"
    outputs: ClassVar = ("probabilities",)
    buffers: ClassVar = {BUFFER: 0}
    tasks: ClassVar = ("classification", "binary", "dense", "sequence")
    unfitted: ClassVar = "the probabilities are those of the model as trained"

    ratio: float = 0.3
    rounds: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(
                f"ratio is the share of the inputs that is masked, in (0, 1), or 0 to choose it; found {self.ratio:g}"
            )
        if self.rounds < 1:
            raise ValueError(f"rounds is the number of masked forms of every sample, at least 1; found {self.rounds}")

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        return {BUFFER: torch.ones(())}

    def apply(self, call: Call, output: Any, state: Mapping[str, Any], task: Task | type[Task]) -> tuple[Any, ...]:
        return Temperature().apply(call, output, {"temperature": state[BUFFER]}, task)

    def fit(self, held: HeldOut, before: State) -> Fitted:
        ratio = self.ratio or self._chosen(held)
        outputs = self._masked(held, ratio)
        scores, answers = _joined(held, outputs)
        temperature = fit_temperature(scores, answers)
        figures = {"temperature": temperature, "ratio": ratio, "rounds": float(self.rounds)}
        for name, pair in (("", held.judged), ("masked_", (scores, answers))):
            figures |= {f"{name}nll_before": _nll(*pair, 1.0), f"{name}nll_after": _nll(*pair, temperature)}
        with contextlib.suppress(NotIdentifiableError):  # which is what this head is for
            figures["temperature_without_masks"] = fit_temperature(*held.judged)
        return Fitted({BUFFER: usable(torch.tensor(temperature, dtype=torch.float64))}, rough(held), figures)

    def refit(self, held: HeldOut, before: State, program: Tensor) -> Fitted:
        return self.fit(held, before) if held.again is not None else Fitted(before, KEPT)

    def told(self, before: State, fitted: Fitted) -> str:
        old, new = (float(state[BUFFER]) for state in (before, fitted.values))
        if fitted.note == KEPT:
            return f"{self.name} {old:.4f} {KEPT}"
        return f"{self.name} fitted again: {old:.4f} before, {new:.4f} after"

    def _masked(self, held: HeldOut, ratio: float) -> list[Tensor]:
        """Run the program on masked inputs; returns ``rounds`` outputs [N, ...], or the output itself if no element is masked.

        Raises:
            ValueError: If the program cannot be run, or has no inputs that can be masked.
        """
        if held.again is None:
            raise ValueError("it reads masked inputs, and the program cannot be run on them")
        if not ratio:
            return [held.output]
        generator = torch.Generator().manual_seed(SEED)
        return [held.again(lambda inputs: masked_inputs(inputs, ratio, generator)) for _ in range(self.rounds)]

    def _chosen(self, held: HeldOut) -> float:
        """Choose the ratio by two-fold cross-validation on the held-out samples.

        Raises:
            ValueError: If no ratio has a temperature in both folds.
        """
        order = torch.randperm(len(held.output), generator=torch.Generator().manual_seed(SEED))
        halves = order.tensor_split(2)
        found = dict[float, float]()
        for ratio in RATIOS:
            outputs = self._masked(held, ratio)
            try:
                found[ratio] = sum(
                    len(scored)
                    * _nll(*_joined(held, [held.output], scored), fit_temperature(*_joined(held, outputs, fitted)))
                    for fitted, scored in (halves, halves[::-1])
                )
            except ValueError:
                continue  # this ratio determines no temperature
        if not found:
            raise ValueError("no ratio has a temperature in both halves of the samples")
        return min(found, key=lambda ratio: found[ratio])


def _joined(held: HeldOut, outputs: list[Tensor], rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return scores and right columns of all judged decisions of several outputs, for all samples or for ``rows``."""
    rows = torch.arange(len(held.output)) if rows is None else rows
    pairs = [judged(held.task, output[rows], held.target[rows]) for output in outputs]
    scores, answers = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return scores, answers


def _nll(scores: Tensor, answers: Tensor, temperature: float) -> float:
    return metrics.nll((scores / temperature).softmax(1), answers)
