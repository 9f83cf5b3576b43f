"""Mixing: the samples of a batch are combined in pairs, for a loss of both targets or for a ranking of confidences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from sparsify.errors import TrainingError
from sparsify.parts.trees import Tree, mapped

Number = TypeVar("Number", Tensor, float)
"""A scalar tensor or a number."""


@dataclass(frozen=True)
class Pairing:
    """Which samples of a batch are combined, and how much each one counts.

    Attributes:
        share: weight of the sample itself, in [0, 1]; its partner has 1 - share. It is the same for all samples of the batch.
        order: int64 [N], the partner of each sample; a permutation of 0 to N - 1.
    """

    share: float
    order: Tensor

    def combined(self, values: Tensor) -> Tensor:
        """Compute share · value + (1 - share) · value of the partner; float, [N, ...].

        Raises:
            TrainingError: If the values are not floating-point numbers.
        """
        if not values.is_floating_point():
            raise TrainingError(
                f"samples are combined as share · x + (1 - share) · x', which needs floating-point inputs; found {values.dtype}. Use "
                f"mixup and rankmixup for inputs such as images, and another method for tokens or bool masks."
            )
        return self.share * values + (1.0 - self.share) * values[self.order]

    def combined_inputs(self, inputs: Tree) -> Tree:
        """Combine every input of a batch with the same pairing.

        Raises:
            TrainingError: If an input is not of floating-point numbers.
        """
        return mapped(self.combined, inputs)


def paired(rows: int, concentration: float, generator: torch.Generator) -> Pairing:
    """Draw a share from Beta(concentration, concentration) and a random partner for each of ``rows`` samples, on the CPU."""
    both = torch.full((2,), concentration, dtype=torch.float64)
    share = float(torch._sample_dirichlet(both, generator)[0])  # pyright: ignore[reportPrivateImportUsage]
    return Pairing(share, torch.randperm(rows, generator=generator))


@dataclass(frozen=True)
class MixedTarget:
    """The target of a batch, together with the pairings by which it is mixed.

    Attributes:
        own: the target of each sample, as the batch gave it.
        pairings: the pairings of the batch, at least one.
        replaced: True: the inputs of the batch were replaced by those of the only pairing. False: the inputs are as the batch gave them.
    """

    own: Tree
    pairings: tuple[Pairing, ...]
    replaced: bool

    def weighed(self, figure: Callable[[Tree], Number]) -> Number:
        """Compute a figure of a target: share · that of the samples + (1 - share) · that of their partners if inputs were replaced."""
        if not self.replaced:
            return figure(self.own)
        (pairing,) = self.pairings
        partner = mapped(lambda values: values[pairing.order], self.own)
        return pairing.share * figure(self.own) + (1.0 - pairing.share) * figure(partner)


def weighed(figure: Callable[[Tree], Number], target: Tree | MixedTarget) -> Number:
    """Compute a figure of a target, which may be one of a mixed batch, such as its loss (mixup: Zhang et al. 2018, arXiv:1710.09412)."""
    return target.weighed(figure) if isinstance(target, MixedTarget) else figure(target)


def own_target(target: Tree | MixedTarget) -> Tree:
    """Return the target of each sample itself."""
    return target.own if isinstance(target, MixedTarget) else target


def margin_ranking(logits: Tensor, mixed: Tensor, differs: Tensor, margin: float) -> Tensor:
    """Compute the mean over samples of max(0, max of z' - max of z + margin), a scalar (RankMixup's MRL: Noh et al. 2023, ICCV).

    Samples that were combined with one of their own class count 0. The published code multiplies a mask [N] with terms [N, 1], which gives
    the product of two means in place of this one.

    Args:
        logits: z, float [N, K], of the samples.
        mixed: z', float [N, K], of their combinations.
        differs: bool [N], whether sample and partner have different labels.
        margin: by how much the highest logit of the sample should be above that of the combination, at least 0.
    """
    return ((mixed.amax(1) - logits.amax(1) + margin).relu() * differs).mean()


def ndcg_ranking(logits: Tensor, mixed: Sequence[Tensor], relevance: Tensor) -> Tensor:
    """Compute 1 minus the mean over samples of the NDCG of confidences, a scalar in [0, 1) (RankMixup's M-NDCG: Noh et al. 2023, ICCV).

    A sample and its M combinations are put in order of relevance, the sample itself first; equal ones stay in their order. With r their
    relevance, c their highest probability and ranks from 1, DCG = sum of c / log2(rank + 1) and IDCG = sum of r / log2(rank + 1). NDCG is
    DCG / IDCG, or IDCG / DCG if DCG is larger.

    Args:
        logits: float [N, K], of the samples, whose relevance is 1.
        mixed: the logits [N, K] of each combination.
        relevance: float [M, N], of the combinations, in [0.5, 1]: the larger share of a class.
    """
    confidence = torch.stack([z.softmax(1).amax(1) for z in (logits, *mixed)])
    gain = torch.cat([torch.ones_like(relevance[:1]), relevance]).to(confidence.dtype)
    order = gain.sort(dim=0, descending=True, stable=True).indices
    discount = torch.arange(2, len(gain) + 2, dtype=gain.dtype, device=gain.device).log2()[:, None]
    found, ideal = ((values.gather(0, order) / discount).sum(0) for values in (confidence, gain))
    return 1.0 - (torch.minimum(found, ideal) / torch.maximum(found, ideal)).mean()


@dataclass(frozen=True)
class Ranking:
    """How the confidences of samples and of their combinations are compared.

    Attributes:
        form: ``margin`` for `margin_ranking`, ``ndcg`` for `ndcg_ranking`.
        weight: weight of the term, at least 0.
        margin: as for `margin_ranking`.
    """

    form: str
    weight: float
    margin: float = 0.0

    def loss(self, logits: Tensor, mixed: Sequence[Tensor], labels: Tensor, pairings: Sequence[Pairing]) -> Tensor:
        """Compute the term without its weight, a scalar.

        Args:
            logits: float [N, K], of the samples.
            mixed: the logits [N, K] of each combination; with the form ``margin``, their terms are averaged.
            labels: int64 [N].
            pairings: the pairing of each combination.
        """
        differs = [labels != labels[pairing.order] for pairing in pairings]
        if self.form == "margin":
            terms = [margin_ranking(logits, z, other, self.margin) for z, other in zip(mixed, differs, strict=True)]
            return torch.stack(terms).mean()
        shares = [max(pairing.share, 1.0 - pairing.share) for pairing in pairings]
        ones = torch.ones_like(logits[:, 0])
        relevance = [ones.masked_fill(other, share) for other, share in zip(differs, shares, strict=True)]
        return ndcg_ranking(logits, mixed, torch.stack(relevance))


@dataclass(frozen=True)
class Mixing:
    """How a method mixes the samples of each training batch.

    Attributes:
        concentration: shares are drawn from Beta(concentration, concentration); above 0.
        ranking: the term that combinations add to the loss of the batch; None: the combinations replace the batch.
        combinations: number of combinations per sample, each with a pairing of its own; 1 if they replace the batch.
    """

    concentration: float
    ranking: Ranking | None = None
    combinations: int = 1

    def pairings(self, rows: int, generator: torch.Generator, device: torch.device) -> tuple[Pairing, ...]:
        """Draw the pairings of a batch of ``rows`` samples from a generator on the CPU; their order is on ``device``."""
        drawn = [paired(rows, self.concentration, generator) for _ in range(self.combinations)]
        return tuple(Pairing(pairing.share, pairing.order.to(device)) for pairing in drawn)
