"""Scores of out-of-distribution inputs by every head that makes one, without attaching it; and the choice of one on validation samples."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsify.calibration.held import held_out as read_samples
from sparsify.errors import PassError, TrainingError
from sparsify.figures import metrics
from sparsify.heads import HEADS, Outlier, run
from sparsify.heads.base import FEATURES, OUTPUT
from sparsify.ir import Program
from sparsify.ir.features import check_features
from sparsify.parts.samples import Changed, Samples
from sparsify.parts.trees import Tree, mapped, tensors
from sparsify.tasks import build

MIXTURES, SCRAMBLED = "mixtures of two validation samples", "validation samples with their values in another order"


@dataclass(frozen=True)
class Choice:
    """The score that tells validation samples best from outliers.

    Attributes:
        chosen: the head that makes it, as a recipe writes it.
        auroc: of every score, by its head; the mean over the sets of outliers.
        outliers: names of the sets.
    """

    chosen: str
    auroc: Mapping[str, float]
    outliers: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible data."""
        return {"chosen": self.chosen, "auroc": dict(self.auroc), "outliers": list(self.outliers)}


def mixtures(samples: Samples) -> Samples:
    """Make N outliers of N samples: the mean of the inputs of two, of different classes where there are any.

    Args:
        samples: with floating-point inputs, and class numbers as targets.
    """
    targets: Tensor = samples.targets
    order = targets.argsort(stable=True)
    partners = torch.empty_like(order)
    partners[order] = order.roll(len(order) // 2)  # half way round the samples, sorted by class

    def mixed(inputs: Tree, rows: Tensor) -> Tree:
        others = iter(tensors(samples.batch(partners[rows]).inputs))
        return mapped(lambda one: (one + next(others)) / 2, inputs)

    return Changed(samples, mixed, MIXTURES)


def scrambled(samples: Samples) -> Samples:
    """Make N outliers of N samples: the values of each input in another order, which is the same for all."""

    def reordered(values: Tensor) -> Tensor:
        flat = values.flatten(1)
        order = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0))
        return flat[:, order].reshape(values.shape)

    return Changed(samples, lambda inputs, rows: mapped(reordered, inputs), SCRAMBLED)


def outlier_scores(
    program: Program, training: Samples, held_out: Samples, sets: Mapping[str, Samples], *, batch_size: int = 256
) -> dict[str, dict[str, Tensor]]:
    """Compute the score of every registered head that makes ``ood_score``, fitted to the samples that it asks for.

    The program does not change. Where its classifier cannot be found, or its logits are not linear in what the classifier reads, heads that
    read features are left out; so is a head that the samples do not determine.

    Args:
        program: a classifier, with logits [N, K].
        training: samples that it was trained on, without augmentation.
        held_out: samples that it was not trained on.
        sets: what to score, by name.
        batch_size: samples per forward pass.

    Returns:
        By head, as a recipe writes it, and by set: scores float64 [N], higher = more in-distribution.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> import sparsify as sp
        >>> from sparsify.calibration import outlier_scores
        >>> from sparsify.parts.samples import TensorSamples
        >>> program = sp.trace(nn.Linear(3, 2), torch.rand(2, 3))
        >>> samples = TensorSamples(torch.rand(40, 3), torch.arange(40) % 2)
        >>> found = outlier_scores(program, samples, samples, {"new": TensorSamples(torch.rand(5, 3), torch.zeros(5).long())})
        >>> found["mahalanobis"]["new"].shape
        torch.Size([5])
    """
    task, known = build("classification"), {OUTPUT}
    with suppress(PassError):  # without features, the logits are left
        check_features(program, training)
        known.add(FEATURES)
    heads = [head for head in HEADS.values() if isinstance(head, Outlier) and known.issuperset(head.reads)]
    fitted_to = {"training": training, "held-out": held_out}
    needed = {of: fitted_to[of] for of in dict.fromkeys(head.samples for head in heads)}
    sources, read = (
        {key: read_samples(program, one, task, known, batch_size=batch_size) for key, one in group.items()}
        for group in (needed, sets)
    )
    found: dict[str, dict[str, Tensor]] = {}
    for head in heads:
        source = sources[head.samples]
        start = {name: value.double() for name, value in head.identity(source.shape(head)).items()}
        with suppress(ValueError):  # these samples do not determine it
            state = head.fit(source, start).values
            found[head.spec] = {key: head.apply(run, values.read(head), state, task)[0] for key, values in read.items()}
    return found


def choose_outlier_score(
    program: Program, training: Samples, validation: Samples, outliers: Mapping[str, Samples] | None = None
) -> Choice:
    """Choose the score that tells validation samples best from outliers, by the mean AUROC over the sets.

    Args:
        program: a classifier.
        training, validation: as for `outlier_scores`. No test sample and no outlier of the report should be among them.
        outliers: sets kept for this choice, by name. None, or empty: `mixtures` of the validation samples, which lie between classes, and
            `scrambled` ones, which look like no sample.

    Raises:
        TrainingError: If there are no outliers, and inputs are whole numbers, of which no mixtures can be made.
    """
    if not outliers:
        check_mixable(validation)
        outliers = {MIXTURES: mixtures(validation), SCRAMBLED: scrambled(validation)}
    inside = "validation"
    found = outlier_scores(program, training, validation, {**outliers, inside: validation})
    auroc = {
        spec: sum(metrics.auroc(scores[inside], scores[name]) for name in outliers) / len(outliers)
        for spec, scores in found.items()
    }
    return Choice(max(auroc, key=lambda spec: auroc[spec]), auroc, tuple(outliers))


def check_mixable(samples: Samples) -> None:
    """Refuse samples that no `mixtures` can be made of.

    Raises:
        TrainingError: If an input holds whole numbers.
    """
    if not all(value.is_floating_point() for value in tensors(samples.batch(torch.arange(1)).inputs)):
        raise TrainingError(
            "a score of out-of-distribution inputs is chosen on changed validation samples, and the inputs hold whole numbers, which "
            "cannot be mixed. Give outliers for the choice (data.ood_validation), or name a score, such as energy."
        )
