"""Coverage: which positions have ever been active, a bit each.

Its share of all positions is what In-Time Over-Parameterization calls the in-time over-parameterization rate R_s (Liu et al. 2021,
arXiv:2102.02887).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def visit(visited: Tensor | None, mask: Tensor) -> Tensor:
    """Add the active positions of ``mask`` to those visited.

    Args:
        visited: uint8, [ceil(P / 8)], what this returned before; None: nothing yet.
        mask: bool, P positions in any shape, on any device.

    Returns:
        A new tensor on the CPU, as ``visited``.
    """
    packed = torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1)))
    return packed if visited is None else visited | packed


def count(visited: Tensor) -> int:
    """How many positions have been active."""
    return int(np.count_nonzero(np.unpackbits(visited.numpy())))
