"""Split conformal intervals: how far predictions lie from the truth, with a guarantee for samples from the same distribution."""

from __future__ import annotations

import math

from torch import Tensor


def needed(level: float) -> int:
    """Return how many held-out samples an interval of this level needs: the least n with ceil((n + 1) · level) <= n.

    Args:
        level: probability that the interval should cover, in (0, 1).
    """
    return math.ceil(level / (1 - level) - 1e-9)


def reach(errors: Tensor, level: float) -> Tensor:
    """Return half the width of intervals that contain the truth of a new sample with probability at least ``level``.

    For each output, this is the ceil((n + 1) · level)-th smallest absolute error of n held-out samples (Papadopoulos et al. 2002; Lei et
    al. 2018, arXiv:1604.04173, algorithm 2). With fewer samples than `needed`, it is the largest error, and the probability is only
    n / (n + 1).

    Args:
        errors: absolute errors of held-out samples, [N, ...], N >= 1.
        level: probability to cover, in (0, 1).

    Returns:
        A tensor [...], of the shape of one sample's output.

    Raises:
        ValueError: If there is no sample, or an error is NaN.
    """
    if not len(errors) or bool(errors.isnan().any()):
        raise ValueError(f"expected errors of at least one sample, without NaN; found shape {list(errors.shape)}")
    place = min(math.ceil((len(errors) + 1) * level - 1e-9), len(errors))
    return errors.sort(0).values[place - 1]
