"""Scores of how well inputs belong to the training distribution, from logits [N, K]; higher = more in-distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor


def maximum_probability(logits: Tensor) -> Tensor:
    """Highest entry of the softmax, [N] (Hendrycks & Gimpel 2017, arXiv:1610.02136)."""
    return logits.softmax(1).amax(1)


def negative_entropy(logits: Tensor) -> Tensor:
    """Sum of p ln p, [N], from -ln K to 0."""
    logs = logits.log_softmax(1)
    return (logs.exp() * logs).sum(1)


def energy(logits: Tensor) -> Tensor:
    """ln of the sum of exp(z), [N]: the negative free energy at temperature 1 (Liu et al. 2020, arXiv:2010.03759)."""
    return logits.logsumexp(1)


SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "maximum probability": maximum_probability,
    "entropy": negative_entropy,
    "energy": energy,
}
"""Those every classifier has; computed from the logits as trained, only of the known classes."""

SMALLEST = 1e-46
"""Below every probability that float32 can hold."""


def scores(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every score that named outputs of a program allow: those of `SCORES`, and ``ood_score`` and ``unknown`` where there are heads.

    Args:
        outputs: ``logits`` [N, K]; maybe ``ood_score`` [N], and ``unknown`` [N], the probability u of the unknown, which scores -ln u.
    """
    found = {name: score(outputs["logits"].double()) for name, score in SCORES.items()}
    if "ood_score" in outputs:
        found["ood_score"] = outputs["ood_score"].double()
    if "unknown" in outputs:
        found["unknown"] = -outputs["unknown"].double().clamp_min(SMALLEST).log()
    return found
