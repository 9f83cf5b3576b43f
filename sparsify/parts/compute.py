"""The cost of training, in units that do not depend on the machine."""

from __future__ import annotations


def evaluations(forwards: float, backwards: float) -> float:
    """Count evaluations. One evaluation is a forward and a backward pass of one batch (an ordinary step); a lone forward pass is half.

    Args:
        forwards, backwards: number of passes of one batch each, at least 0.
    """
    return (forwards + backwards) / 2
