"""Losses that protect classes: cross-entropy with a weight per class, given or learned from what each class loses beside a dense model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.errors import TrainingError
from sparsify.parts.calibrating_losses import check_classes, cross_entropy

State = dict[str, Tensor]
EXCESS_GAP, RECALL = "excess-gap", "recall"
"""What a constraint bounds: the loss of recall of a class beyond the loss of accuracy, or the loss of recall itself."""


def class_weighted(logits: Tensor, labels: Tensor, weights: Sequence[float]) -> Tensor:
    """Compute the mean of -ln p_y over the batch with the weight of each sample's class, divided by the sum of these weights.

    Args:
        logits: float [N, K].
        labels: int64 [N], 0 to K - 1.
        weights: K numbers, at least 0.

    Raises:
        TrainingError: If the target is not one class per sample, or there are not K weights.
    """
    check_classes(logits, labels)
    if len(weights) != logits.shape[1]:
        raise TrainingError(
            f"the loss has weights of {len(weights)} classes, and the logits {logits.shape[1]}. Give one weight per class."
        )
    return functional.cross_entropy(logits, labels, torch.tensor(weights, dtype=logits.dtype, device=logits.device))


@dataclass(frozen=True)
class ByFrequency:
    """`class_weighted` with the weight 1 / n_c for a class with n_c of the labels so far, so that all classes have the same total weight.

    The state holds ``seen``, int64 [K], the number of labels of each class.
    """

    def init(self) -> State:
        """Return the state before the first batch, which tells the number of classes."""
        return {}

    def observe(self, logits: Tensor, labels: Tensor, state: Any, step: int) -> State:
        """Return the state with the labels [N] of a batch.

        Raises:
            TrainingError: If the target is not one class per sample.
        """
        del step
        check_classes(logits, labels)
        counts = torch.bincount(labels, minlength=logits.shape[1]).cpu()
        return {"seen": state["seen"] + counts if state else counts}

    def loss(self, logits: Tensor, labels: Tensor, state: Any) -> Tensor:
        """Compute the loss, a scalar."""
        seen = state["seen"]
        return class_weighted(logits, labels, (seen > 0).double().div(seen.clamp_min(1)).tolist())

    def readings(self, state: Any) -> Mapping[str, float]:
        """Return how many times as often as the rarest class the most frequent one was seen, of those seen at all."""
        seen = state["seen"][state["seen"] > 0] if state else torch.ones(1)
        return {"imbalance": float(seen.max() / seen.min())}


def lagrangian(logits: Tensor, labels: Tensor, multipliers: Tensor, *, excess: bool, bounded: bool = True) -> Tensor:
    """Compute L + sum over the classes c of the batch of multiplier_c · (L_c - L), or of multiplier_c · L_c.

    L is the mean cross-entropy of the batch and L_c that of its samples of class c. L_c stands in for the recall of the class, which has no
    gradient, and L for the accuracy. If all multipliers are 0, the loss is cross-entropy, bit for bit.

    Args:
        logits: float [N, K].
        labels: int64 [N], 0 to K - 1.
        multipliers: float64 [K], at least 0.
        excess: whether L is subtracted from L_c.
        bounded: whether L is subtracted once at most in all. Otherwise, multipliers whose sum exceeds 1 reward a high loss of the other
            classes, which has no bound.

    Raises:
        TrainingError: If the target is not one class per sample.
    """
    if not bool(multipliers.any()):
        return cross_entropy(logits, labels)
    check_classes(logits, labels)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    counts = torch.bincount(labels, minlength=logits.shape[1])
    present = multipliers.to(losses).masked_fill(counts == 0, 0.0)
    mean = losses.mean()
    own = (losses * (present / counts.clamp_min(1))[labels]).sum()
    if not excess:
        return mean + own
    subtracted = present.sum()
    return mean + own - (subtracted.clamp_max(1.0) if bounded else subtracted) * mean


@dataclass(frozen=True)
class Balancing:
    """A Lagrangian whose multipliers grow while a class loses more than it may beside a dense model (Balancing Act: arXiv:2310.20673).

    The gap of a class c is the dense model's recall minus the recall of the last ``memory`` predictions for its samples; with
    ``EXCESS_GAP``, the mean gap is subtracted, where each class counts by its share of the labels so far. At each step, before its loss,
    multiplier_c becomes max(0, multiplier_c + rate · (gap_c - tolerance)). Only classes with ``memory`` predictions take part. The loss is
    `lagrangian`.

    The state holds ``right``, uint8 [K, memory], whether each remembered prediction is right; by class [K] ``seen``, the number of samples,
    ``gaps``, NaN without a full memory, and ``multipliers``.

    Attributes:
        dense: recall of each class of the dense model on the training samples, in [0, 1]; None for a class without constraint. None: not
            known yet.
        constraint: ``EXCESS_GAP`` or ``RECALL``.
        tolerance: largest gap that costs nothing, in [-1, 1].
        rate: step size of the multipliers, above 0.
        memory: number of predictions per class that a recall is computed from, at least 1.
        classes: the classes with a constraint; empty: all.
        start_at: first step at which multipliers change.
        bounded: as for `lagrangian`.
        name: of the method, for messages.
    """

    dense: tuple[float | None, ...] | None
    constraint: str = EXCESS_GAP
    tolerance: float = 0.01
    rate: float = 0.01
    memory: int = 40
    classes: tuple[int, ...] = ()
    start_at: int = 1
    bounded: bool = True
    name: str = "balancing-act"

    def init(self) -> State:
        """Return the state before the first batch, which tells the number of classes."""
        return {}

    def observe(self, logits: Tensor, labels: Tensor, state: Any, step: int) -> State:
        """Return the state for the loss of ``step`` (from 1), given its logits [N, K] and labels [N].

        Raises:
            TrainingError: If the recall of the dense model is not known, or not that of these classes.
        """
        check_classes(logits, labels)
        dense = self._dense(logits.shape[1], int(labels.max()))
        right, labels = (logits.argmax(1) == labels).to(torch.uint8).cpu(), labels.cpu()
        last = state or self._empty(logits.shape[1])
        remembered, seen = _remember(last["right"], last["seen"], right, labels)
        full = (seen >= self.memory) & ~dense.isnan()
        gaps = dense - remembered.double().mean(1)
        gaps = gaps.where(full, torch.nan)
        if self.constraint == EXCESS_GAP and bool(full.any()):
            gaps = gaps - (gaps * seen)[full].sum() / seen[full].sum()
        multipliers = last["multipliers"]
        if step >= self.start_at:
            moved = (multipliers + self.rate * (gaps - self.tolerance)).clamp_min(0.0)
            multipliers = moved.where(full & self._chosen(len(gaps)), multipliers)
        return {"right": remembered, "seen": seen, "gaps": gaps, "multipliers": multipliers}

    def loss(self, logits: Tensor, labels: Tensor, state: Any) -> Tensor:
        """Compute the loss, a scalar."""
        excess = self.constraint == EXCESS_GAP
        return lagrangian(logits, labels, state["multipliers"], excess=excess, bounded=self.bounded)

    def readings(self, state: Any) -> Mapping[str, float]:
        """Return the largest multiplier, and the largest gap of a class with a full memory; 0 before there is one."""
        if not state:
            return {"largest_multiplier": 0.0, "largest_gap": 0.0}
        known = state["gaps"][self._chosen(len(state["gaps"])) & ~state["gaps"].isnan()]
        gap = float(known.max()) if len(known) else 0.0
        return {"largest_multiplier": float(state["multipliers"].max()), "largest_gap": gap}

    def _empty(self, classes: int) -> State:
        return {
            "right": torch.zeros(classes, self.memory, dtype=torch.uint8),
            "seen": torch.zeros(classes, dtype=torch.int64),
            "multipliers": torch.zeros(classes, dtype=torch.float64),
        }

    def _chosen(self, classes: int) -> Tensor:
        """Return which classes have a constraint, bool [K]."""
        chosen = torch.zeros(classes, dtype=torch.bool)
        chosen[list(self.classes) if self.classes else slice(None)] = True
        return chosen

    def _dense(self, classes: int, highest: int) -> Tensor:
        """Return the dense recalls, float64 [K], NaN for a class without one; an unknown class (the last logit) need not have one."""
        if self.dense is None:
            raise TrainingError(
                f"method {self.name!r} compares with the recall of a dense model by class, which is not known. Give it as "
                f"dense_recall=[...], one number per class, or run a recipe with a baseline or a teacher."
            )
        if not highest < len(self.dense) <= classes or max(self.classes, default=0) >= classes:
            raise TrainingError(
                f"method {self.name!r}: dense_recall has {len(self.dense)} entries and classes are {list(self.classes) or 'all'}; found "
                f"{classes} logits and label {highest}. Give one recall per class, and classes from 0."
            )
        missing = classes - len(self.dense)
        values = [torch.nan if recall is None else recall for recall in self.dense]
        return torch.tensor([*values, *[torch.nan] * missing], dtype=torch.float64)


def _remember(memory: Tensor, seen: Tensor, right: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Write the newest predictions over the oldest; returns the new memory [K, M] and how many samples each class has had [K]."""
    classes, size = memory.shape
    order = labels.argsort(stable=True)
    sorted_labels, counts = labels[order], torch.bincount(labels, minlength=classes)
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - first[sorted_labels]
    kept = rank >= counts[sorted_labels] - size  # of more samples of a class than fit, the last ones
    place = (seen[sorted_labels] + rank) % size
    memory = memory.clone()
    memory[sorted_labels[kept], place[kept]] = right[order][kept]
    return memory, seen + counts
