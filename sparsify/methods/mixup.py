"""Mixup and RankMixup, around any method."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method, in_range, made_for, one_of
from sparsify.parts.mixing import Mixing, Ranking

FORMS = ("ndcg", "margin")
"""How RankMixup compares confidences."""
MARGIN, COMBINATIONS = 2.0, 3


@checked_method
def mixup(base: Method, *, concentration: float = 1.0) -> Method:
    """Mixup: train on combinations of two samples, with the loss of both targets (Zhang et al. 2018, arXiv:1710.09412).

    The inputs of a batch become λ x + (1 - λ) x', where x' are the same samples in random order and λ is drawn once per batch. The loss is
    λ times that of the targets plus 1 - λ times that of the targets of x', whatever loss ``base`` has. For every task, and inputs of
    floating-point numbers.

    Args:
        base: any method that does not mix samples already.
        concentration: a of the distribution Beta(a, a) of λ, in [0.05, 100]. The default is that of the authors' code for CIFAR-10; on
            ImageNet, 0.1 to 0.4 is usual. The larger it is, the less confident the network becomes.

    Raises:
        RecipeError: If ``base`` mixes samples already, or the option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.mixup(sp.methods.rigl(density=0.1), concentration=0.2).name
        'mixup(rigl)'
    """
    _check_unmixed(base, "mixup")
    in_range(concentration, 0.05, 100.0, "concentration")
    return dataclasses.replace(base, name=f"mixup({base.name})", mixing=Mixing(concentration))


@checked_method
def rankmixup(
    base: Method,
    *,
    form: str = "ndcg",
    weight: float = 0.1,
    concentration: float = 2.0,
    combinations: int = COMBINATIONS,
    margin: float = MARGIN,
) -> Method:
    """RankMixup: penalise combinations of samples that get a higher confidence than the samples (Noh et al. 2023, ICCV).

    The batch itself has the loss of ``base``. Combinations of its samples, as in `mixup`, have no label; they only add a term that ranks
    confidences, by ``sparsify.parts.mixing.ndcg_ranking`` or ``margin_ranking``. Each takes a forward and a backward pass of its own, in
    train mode, which are counted. For classification.

    Args:
        base: any method that does not mix samples already.
        form: ``ndcg`` compares the confidences of a sample and all of its combinations with their shares (M-NDCG); ``margin`` compares the
            highest logit of a sample with that of one combination (MRL).
        weight: weight of the term, in [0, 1000]; 0 trains as ``base`` does, at the cost of the passes. The default is that of the code.
        concentration: a of the distribution Beta(a, a) of the share of a sample, in [0.05, 100]. The default is that of the authors'
            setting for CIFAR-10; for Tiny ImageNet it is 1.
        combinations: combinations per sample with ``ndcg``, in [1, 16]; the code has 3. With ``margin`` there is one.
        margin: of logits with ``margin``, in [0, 1000]. The default is that for CIFAR-10; for Tiny ImageNet it is 1.

    Raises:
        RecipeError: If ``base`` mixes samples already or is for another task, an option is out of range, or an option is given that the
            form does not have.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.rankmixup(sp.methods.rigl(density=0.1), form="margin").name
        'rankmixup(rigl)'
    """
    _check_unmixed(base, "rankmixup")
    one_of(form, FORMS, "form")
    in_range(weight, 0.0, 1000.0, "weight")
    in_range(concentration, 0.05, 100.0, "concentration")
    in_range(combinations, 1, 16, "combinations")
    in_range(margin, 0.0, 1000.0, "margin")
    if form == "margin" and combinations != COMBINATIONS:
        raise RecipeError(
            f"rankmixup: combinations is {combinations}, but form margin has one per sample. Leave combinations out, or set form=ndcg."
        )
    if form == "ndcg" and margin != MARGIN:
        raise RecipeError(
            f"rankmixup: margin is {margin:g}, but form ndcg has none. Leave margin out, or set form=margin."
        )
    mixing = Mixing(concentration, Ranking(form, weight, margin), combinations if form == "ndcg" else 1)
    tasks = made_for(base, "classification")
    return dataclasses.replace(base, name=f"rankmixup({base.name})", mixing=mixing, tasks=tasks)


def _check_unmixed(base: Method, wrapper: str) -> None:
    """Check that ``base`` does not mix samples.

    Raises:
        RecipeError: If it does.
    """
    if base.mixing is not None:
        raise RecipeError(f"{wrapper}({base.name}): {base.name!r} mixes samples already; wrap a method that does not.")
