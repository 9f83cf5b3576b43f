"""Coverage: which positions have ever been active, stored as one bit per position.

The share of all positions that were ever active is the in-time over-parameterization rate R_s of Liu et al. (2021, arXiv:2102.02887).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def visit(visited: Tensor | None, mask: Tensor) -> Tensor:
    """Add the active positions of ``mask`` to those visited.

    Args:
        visited: uint8 [ceil(P / 8)], the result of the previous call; None at the start.
        mask: bool, P positions in any shape, on any device.

    Returns:
        A new uint8 tensor [ceil(P / 8)] on the CPU.
    """
    packed = torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1)))
    return packed if visited is None else visited | packed


def count(visited: Tensor) -> int:
    """Count the positions that have ever been active."""
    return int(np.count_nonzero(np.unpackbits(visited.numpy())))
