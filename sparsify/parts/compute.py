"""What training costs, in units that do not depend on a machine."""

from __future__ import annotations


def evaluations(forwards: float, backwards: float) -> float:
    """A forward and a backward pass of one batch, which is what an ordinary step takes, is one; a forward pass by itself is half of one.

    Args:
        forwards, backwards: passes of a batch, at least 0.
    """
    return (forwards + backwards) / 2
