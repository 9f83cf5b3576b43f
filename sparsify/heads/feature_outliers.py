"""Heads that add ``ood_score`` from the features that the classifier reads, with statistics of samples as constants."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify.errors import RecipeError
from sparsify.heads.base import FEATURES, OUTPUT, Call, Fitted, HeldOut, State, size_of
from sparsify.heads.outliers import Outlier, free_energy
from sparsify.heads.scaling import usable
from sparsify.parts import feature_statistics as statistics

SMALLEST = 1e-12
"""Smallest feature that counts as above 0."""
LARGEST_RATIO = 20.0
"""Largest exponent of ASH-S and SCALE; it is unbounded where almost nothing is kept."""
MOST = 2**29
"""Numbers in float32 that an ONNX file can hold, which has fewer than 2^31 bytes."""
aten = torch.ops.aten


@dataclass(frozen=True)
class Mahalanobis(Outlier):
    """Minus the squared Mahalanobis distance of the features to the nearest class mean (Lee et al. 2018, arXiv:1807.03888).

    The covariance is that of the classes about their means, shared by all.
    """

    name: ClassVar = "mahalanobis"
    buffers: ClassVar = {"centre": 1, "whitening": 2, "means": 2}
    reads: ClassVar = (OUTPUT, FEATURES)
    samples: ClassVar = "training"
    unfitted: ClassVar = "ood_score is 0"

    def identity(self, shape: Any) -> dict[str, Tensor]:
        (_, classes), (_, width) = shape
        return {
            "centre": torch.zeros(width),
            "whitening": torch.zeros(width, width),
            "means": torch.zeros(classes, width),
        }

    def score(self, call: Call, read: Any, state: Mapping[str, Any]) -> Any:
        moved = call(aten.sub.Tensor, read[1], state["centre"])
        return _nearest(call, call(aten.matmul.default, moved, state["whitening"]), state["means"])

    def fit(self, held: HeldOut, before: State) -> Fitted:
        features, labels = held.others[FEATURES], held.judged[1]
        means = statistics.class_means(features, labels, held.output.shape[1])
        found = statistics.whitening(features - means[labels], features.mean(0))
        return Fitted({
            "centre": usable(found.centre), "whitening": usable(found.matrix), "means": usable((means - found.centre) @ found.matrix),
        })  # fmt: skip


@dataclass(frozen=True)
class RelativeMahalanobis(Outlier):
    """`Mahalanobis`, minus that of all samples as one class (Ren et al. 2021, arXiv:2106.09022), which counts what all share less."""

    name: ClassVar = "relative-mahalanobis"
    buffers: ClassVar = {"centre": 1, "whitening": 2, "means": 2, "background": 2}
    reads: ClassVar = (OUTPUT, FEATURES)
    samples: ClassVar = "training"
    unfitted: ClassVar = "ood_score is 0"

    def identity(self, shape: Any) -> dict[str, Tensor]:
        width = shape[1][1]
        return {**Mahalanobis().identity(shape), "background": torch.zeros(width, width)}

    def score(self, call: Call, read: Any, state: Mapping[str, Any]) -> Any:
        moved = call(aten.sub.Tensor, read[1], state["centre"])
        nearest = _nearest(call, call(aten.matmul.default, moved, state["whitening"]), state["means"])
        return call(aten.add.Tensor, nearest, _squared(call, call(aten.matmul.default, moved, state["background"])))

    def fit(self, held: HeldOut, before: State) -> Fitted:
        features = held.others[FEATURES]
        found = Mahalanobis().fit(held, before).values
        background = statistics.whitening(features - features.mean(0), features.mean(0)).matrix
        return Fitted({**found, "background": usable(background)})


@dataclass(frozen=True)
class NearestNeighbours(Outlier):
    """The cosine similarity of the features to the k-th most similar ones of a bank (Sun et al. 2022, arXiv:2204.06507).

    The order is that of the distance between features of length 1. The bank is part of the file: it holds ``size`` features of training
    samples, evenly from all classes, and costs as many products of length d per sample.

    Attributes:
        neighbour: k, at least 1.
        size: number of features in the bank, at least k.
    """

    name: ClassVar = "knn"
    buffers: ClassVar = {"bank": 2}
    reads: ClassVar = (FEATURES,)
    samples: ClassVar = "training"
    unfitted: ClassVar = "ood_score is 0"

    neighbour: int = 50
    size: int = 1000

    def __post_init__(self) -> None:
        if not 1 <= self.neighbour <= self.size:
            raise ValueError(
                f"neighbour is a rank from 1 to the size of the bank; found {self.neighbour} of {self.size}"
            )

    def identity(self, shape: Any) -> dict[str, Tensor]:
        width = int(shape[1])
        if self.size * width > MOST:
            raise RecipeError(
                f"the head {self.spec!r} keeps {self.size:,} features of {width} numbers each, and an ONNX file holds at most {MOST:,} "
                "numbers. Name a smaller bank, such as knn:50:1000."
            )
        return {"bank": torch.zeros(self.size, width)}

    def score(self, call: Call, read: Any, state: Mapping[str, Any]) -> Any:
        length = call(aten.linalg_vector_norm.default, read, 2, [1], True)
        unit = call(aten.div.Tensor, read, call(aten.clamp_min.default, length, 1e-12))
        alike = call(aten.matmul.default, unit, call(aten.t.default, state["bank"]))
        return call(
            aten.select.int, call(getitem, call(aten.topk.default, alike, self.neighbour), 0), 1, self.neighbour - 1
        )

    def fit(self, held: HeldOut, before: State) -> Fitted:
        features = held.others[FEATURES]
        note = f"a rough estimate, from {len(features)} training samples for a bank of {self.size}"
        found = statistics.bank(features, held.judged[1], self.size)
        return Fitted({"bank": usable(found)}, note if len(features) < self.size else None)

    def owns(self, shapes: Mapping[str, Sequence[Any]]) -> bool:
        return super().owns(shapes) and shapes["bank"][0] == self.size


@dataclass(frozen=True)
class VirtualLogit(Outlier):
    """The energy minus the length of the features outside their principal directions, as a logit (ViM; Wang et al. 2022, arXiv:2203.10807).

    Attributes:
        principal: number of principal directions; 0: 1000 of 2048 features or more, 512 of 768 or more, else half.
    """

    name: ClassVar = "vim"
    buffers: ClassVar = {"origin": 1, "residual": 2}
    reads: ClassVar = (OUTPUT, FEATURES)
    samples: ClassVar = "training"
    unfitted: ClassVar = "ood_score is the energy"

    principal: int = 0

    def __post_init__(self) -> None:
        if self.principal < 0:
            raise ValueError(f"principal is a number of directions, at least 0; found {self.principal}")

    def identity(self, shape: Any) -> dict[str, Tensor]:
        width = shape[1][1]
        return {"origin": torch.zeros(width), "residual": torch.zeros(width, width)}

    def score(self, call: Call, read: Any, state: Mapping[str, Any]) -> Any:
        moved = call(aten.matmul.default, call(aten.sub.Tensor, read[1], state["origin"]), state["residual"])
        return call(aten.sub.Tensor, free_energy(call, read[0]), call(aten.linalg_vector_norm.default, moved, 2, [1]))

    def fit(self, held: HeldOut, before: State) -> Fitted:
        features, (weight, bias) = held.others[FEATURES], _classifier(held)
        origin = -torch.linalg.pinv(weight) @ bias
        wanted = self.principal or statistics.usual_principal(features.shape[1])
        residual, left_out = statistics.residual_directions(features, origin, min(wanted, features.shape[1] - 1))
        length = float(((features - origin) @ residual).norm(dim=1).mean())
        if not length > 0:
            raise ValueError("the features of the samples have no part outside their principal directions")
        scale = float(held.output.amax(1).mean()) / length
        return Fitted(
            {"origin": usable(origin), "residual": usable(residual * scale)},
            figures={"principal": float(left_out), "alpha": scale},
        )


@dataclass(frozen=True)
class OtherFeatures(Outlier):
    """The energy of the logits that the classifier computes from changed features; the file's logits stay as they are."""

    buffers: ClassVar = {"weight": 2, "bias": 1}
    reads: ClassVar = (OUTPUT, FEATURES)
    unfitted: ClassVar = "ood_score is that of equal logits"

    def identity(self, shape: Any) -> dict[str, Tensor]:
        (_, classes), (_, width) = shape
        return {"weight": torch.zeros(classes, width), "bias": torch.zeros(classes)}

    @abstractmethod
    def changed(self, call: Call, features: Any, state: Mapping[str, Any]) -> Any:
        """Change the features [N, d] that the classifier reads."""

    def score(self, call: Call, read: Any, state: Mapping[str, Any]) -> Any:
        return free_energy(
            call, call(aten.linear.default, self.changed(call, read[1], state), state["weight"], state["bias"])
        )

    def fit(self, held: HeldOut, before: State) -> Fitted:
        weight, bias = _classifier(held)
        return Fitted({"weight": usable(weight), "bias": usable(bias)})


@dataclass(frozen=True)
class React(OtherFeatures):
    """The energy with features cut off above a percentile of held-out ones (ReAct; Sun et al. 2021, arXiv:2111.12797).

    Attributes:
        percent: of all features of held-out samples, that stay as they are, in (0, 100].
    """

    name: ClassVar = "react"
    buffers: ClassVar = {"weight": 2, "bias": 1, "limit": 0}

    percent: float = 90.0

    def __post_init__(self) -> None:
        percentage(self.percent, "stay as they are", most=True)

    def identity(self, shape: Any) -> dict[str, Tensor]:
        return {**super().identity(shape), "limit": torch.zeros(())}

    def changed(self, call: Call, features: Any, state: Mapping[str, Any]) -> Any:
        return call(aten.minimum.default, features, state["limit"])

    def fit(self, held: HeldOut, before: State) -> Fitted:
        found = super().fit(held, before)
        values = held.others[FEATURES].flatten().sort().values
        limit = values[round((len(values) - 1) * self.percent / 100)]
        return Fitted({**found.values, "limit": usable(limit)}, figures={"limit": float(limit)})


@dataclass(frozen=True)
class Removing(OtherFeatures):
    """The energy without a share of the features or weights.

    Attributes:
        percent: the share that is removed, in [0, 100).
    """

    percent: float = 90.0

    def __post_init__(self) -> None:
        percentage(self.percent, "are removed")


@dataclass(frozen=True)
class Dice(Removing):
    """The energy of a classifier that keeps the entries which contribute most to training samples (DICE; Sun and Li, arXiv:2111.09805).

    The percentile is that of the active weights of a sparse classifier, because the others contribute nothing.

    Attributes:
        percent: of the active weights, that are removed, in [0, 100).
    """

    name: ClassVar = "dice"
    samples: ClassVar = "training"

    def changed(self, call: Call, features: Any, state: Mapping[str, Any]) -> Any:
        return features

    def fit(self, held: HeldOut, before: State) -> Fitted:
        weight, bias = _classifier(held)
        kept = statistics.contributions(weight, held.others[FEATURES].mean(0), self.percent)
        return Fitted(
            {"weight": usable(kept), "bias": usable(bias)}, figures={"density": float((kept != 0).double().mean())}
        )


@dataclass(frozen=True)
class AshPruned(Removing):
    """The energy with the largest features only (ASH-P; Djurisic et al. 2023, arXiv:2209.09858), for features as after a ReLU.

    Attributes:
        percent: of the features of a sample, that are removed, in [0, 100).
    """

    name: ClassVar = "ash-p"

    def changed(self, call: Call, features: Any, state: Mapping[str, Any]) -> Any:
        return call(aten.mul.Tensor, features, _largest(call, features, self.percent))


@dataclass(frozen=True)
class AshBinarised(Removing):
    """`AshPruned` with equal features of the same sum: s / k each, for the sum s before and k features that stay (ASH-B).

    Attributes:
        percent: as for `AshPruned`.
    """

    name: ClassVar = "ash-b"

    def changed(self, call: Call, features: Any, state: Mapping[str, Any]) -> Any:
        kept = _largest(call, features, self.percent)
        count = call(aten.clamp_min.default, call(aten.sum.dim_IntList, kept, [1], True), 1.0)
        total = call(aten.sum.dim_IntList, features, [1], True)
        return call(aten.mul.Tensor, kept, call(aten.div.Tensor, total, count))


@dataclass(frozen=True)
class AshScaled(Removing):
    """`AshPruned`, times exp(sum before / sum after) (ASH-S).

    Attributes:
        percent: as for `AshPruned`.
    """

    name: ClassVar = "ash-s"

    def changed(self, call: Call, features: Any, state: Mapping[str, Any]) -> Any:
        kept = call(aten.mul.Tensor, features, _largest(call, features, self.percent))
        return call(aten.mul.Tensor, kept, _growth(call, features, kept))


@dataclass(frozen=True)
class Scale(OtherFeatures):
    """All features, times the factor of `AshScaled` (SCALE; Xu et al. 2024, arXiv:2310.00227).

    Attributes:
        percent: of the features of a sample, that the factor counts as removed, in [0, 100).
    """

    name: ClassVar = "scale"

    percent: float = 85.0

    def __post_init__(self) -> None:
        percentage(self.percent, "count as removed")

    def changed(self, call: Call, features: Any, state: Mapping[str, Any]) -> Any:
        kept = call(aten.mul.Tensor, features, _largest(call, features, self.percent))
        return call(aten.mul.Tensor, features, _growth(call, features, kept))


def percentage(value: float, what: str, *, most: bool = False) -> None:
    """Refuse a share that is not in [0, 100), or in (0, 100] if ``most``.

    Raises:
        ValueError: If it is not; ``what`` says what happens to that share.
    """
    if not (0 < value <= 100 if most else 0 <= value < 100):
        raise ValueError(
            f"percent is the share of features or weights that {what}, in {'(0, 100]' if most else '[0, 100)'}; found {value:g}"
        )


def _classifier(held: HeldOut) -> tuple[Tensor, Tensor]:
    if held.classifier is None:
        raise ValueError("the classifier of the samples is not known")
    return held.classifier


def _squared(call: Call, values: Any) -> Any:
    return call(aten.sum.dim_IntList, call(aten.mul.Tensor, values, values), [-1])


def _nearest(call: Call, values: Any, means: Any) -> Any:
    """Return minus the squared distance of each row of ``values`` [N, d] to the nearest row of ``means`` [K, d], [N]."""
    apart = call(aten.sub.Tensor, call(aten.unsqueeze.default, values, 1), means)
    return call(aten.neg.default, call(aten.amin.default, _squared(call, apart), [1]))


def _largest(call: Call, features: Any, percent: float) -> Any:
    """Return 1 for the largest features of each sample that are above 0, and 0 for others, [N, d]; of equal ones, all stay."""
    width = size_of(features, 1)
    count = max(1, width - round(width * percent / 100))
    values = call(getitem, call(aten.topk.default, features, count), 0)
    least = call(aten.clamp_min.default, call(aten.select.int, values, 1, count - 1), SMALLEST)
    return call(aten.where.Scalar, call(aten.ge.Tensor, features, call(aten.unsqueeze.default, least, 1)), 1.0, 0.0)


def _growth(call: Call, features: Any, kept: Any) -> Any:
    """Return exp(sum of the features / sum of those that are kept), [N, 1]."""
    before, after = (call(aten.sum.dim_IntList, values, [1], True) for values in (features, kept))
    ratio = call(aten.div.Tensor, before, call(aten.clamp_min.default, after, SMALLEST))
    return call(aten.exp.default, call(aten.clamp.default, ratio, 0.0, LARGEST_RATIO))
