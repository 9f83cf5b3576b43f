"""Scores of how well inputs belong to the training distribution, from logits [N, K]; higher = more in-distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor


def maximum_probability(logits: Tensor) -> Tensor:
    """Compute the highest softmax probability, [N], in [1/K, 1] (Hendrycks & Gimpel 2017, arXiv:1610.02136)."""
    return logits.softmax(1).amax(1)


def negative_entropy(logits: Tensor) -> Tensor:
    """Compute the sum of p ln p over classes, [N], from -ln K to 0."""
    logs = logits.log_softmax(1)
    return (logs.exp() * logs).sum(1)


def energy(logits: Tensor) -> Tensor:
    """Compute ln of the sum of exp(z), [N]: the negative free energy at temperature 1 (Liu et al. 2020, arXiv:2010.03759)."""
    return logits.logsumexp(1)


SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "maximum probability": maximum_probability,
    "entropy": negative_entropy,
    "energy": energy,
}
"""The scores that every classifier has, by name. They are computed from the trained logits of the known classes."""

SMALLEST = 1e-46
"""A probability smaller than every positive one that float32 can hold."""


def scores(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute every score that the outputs of a program allow: those of `SCORES`, and those of its heads, ``ood_score`` and ``unknown``.

    Args:
        outputs: by name: ``logits`` [N, K]; optionally ``ood_score`` [N]; optionally ``unknown`` [N], the probability u of the unknown
            class, whose score is -ln u.
    """
    found = {name: score(outputs["logits"].double()) for name, score in SCORES.items()}
    if "ood_score" in outputs:
        found["ood_score"] = outputs["ood_score"].double()
    if "unknown" in outputs:
        found["unknown"] = -outputs["unknown"].double().clamp_min(SMALLEST).log()
    return found
