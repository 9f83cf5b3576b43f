"""How often a class is right, as a function of its probability: isotonic regression and histograms, and both as sums of ramps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NARROWEST = 4e-6
"""Smallest width of a ramp relative to where it ends: probabilities in single precision differ by roundings between runtimes."""
NEGLIGIBLE = 1e-12
"""Smallest width of a ramp. Smaller probabilities are not told apart."""


@dataclass(frozen=True)
class Blocks:
    """Samples in groups by ascending probability; all tensors are float64 [B].

    Attributes:
        first, last, centre: smallest, largest and mean probability of a block. No two blocks overlap.
        frequency: share of the samples for which the class is right, in [0, 1].
        count: number of samples.
    """

    first: Tensor
    last: Tensor
    centre: Tensor
    frequency: Tensor
    count: Tensor


def isotonic_blocks(probabilities: Tensor, right: Tensor) -> Blocks:
    """Find the non-decreasing function of the probability with the least squared error, by pooling adjacent violators.

    The algorithm (Ayer et al. 1955) is exact: it joins neighbouring blocks whose frequencies decrease until none do. Samples of equal
    probability are in one block.

    Args:
        probabilities: float [N], N >= 1.
        right: bool [N], whether the class is right.

    Returns:
        Blocks of ascending frequency, no two equal.
    """
    values, counts, hits = _distinct(probabilities, right)
    # Where the frequency of the next value is no higher, both end up in one block, so that only other values have to be visited.
    share = hits / counts
    run = torch.cat([torch.zeros(1, dtype=torch.int64), (share[1:] > share[:-1]).long().cumsum(0)])
    pooled: list[tuple[float, float, int]] = []  # hits, samples and runs of each block so far
    for block in zip(_summed(run, hits).tolist(), _summed(run, counts).tolist(), strict=True):
        hit, size, length = *block, 1
        while pooled and pooled[-1][0] * size >= hit * pooled[-1][1]:
            before = pooled.pop()
            hit, size, length = hit + before[0], size + before[1], length + before[2]
        pooled.append((hit, size, length))
    block_of_run = torch.repeat_interleave(torch.tensor([length for *_, length in pooled]))
    return _blocks(values, counts, hits, block_of_run[run])


def histogram_blocks(probabilities: Tensor, right: Tensor, bins: int) -> Blocks:
    """Divide samples into bins of equal mass by their probability; samples of equal probability stay together.

    Args:
        probabilities: float [N], N >= 1.
        right: bool [N], whether the class is right.
        bins: number of bins, >= 1. There are fewer if samples are, or if many have equal probabilities.
    """
    values, counts, hits = _distinct(probabilities, right)
    middle = counts.cumsum(0) - counts / 2  # rank of a value, in the middle of its samples
    number = (middle * bins / counts.sum()).long().clamp_max(bins - 1)
    return _blocks(values, counts, hits, torch.unique_consecutive(number, return_inverse=True)[1])


def thinned(blocks: Blocks, most: int) -> Blocks:
    """Join neighbouring blocks until there are at most ``most``, each time the two whose joining raises the squared error least.

    Joined blocks of an isotonic regression are isotonic, and their frequencies are still those of their samples.
    """
    while len(blocks.count) > most:
        count, frequency = blocks.count, blocks.frequency
        cost = count[1:] * count[:-1] / (count[1:] + count[:-1]) * (frequency[1:] - frequency[:-1]) ** 2
        number = torch.arange(len(count))
        number[int(cost.argmin()) + 1 :] -= 1
        total = _summed(number, count)
        ends = torch.unique_consecutive(number, return_counts=True)[1].cumsum(0) - 1
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1] + 1])
        centre, frequency = (_summed(number, count * value) / total for value in (blocks.centre, frequency))
        blocks = Blocks(blocks.first[starts], blocks.last[ends], centre, frequency, total)
    return blocks


@dataclass(frozen=True)
class Ramps:
    """The function base + sum_s jump_s clip((p - start_s) rate_s, 0, 1): each ramp rises by its jump from its start on.

    Attributes:
        base: the value at 0.
        start, rate, jump: float64 [S]; a ramp has the width 1 / rate.
    """

    base: float
    start: Tensor
    rate: Tensor
    jump: Tensor

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Compute the function for probabilities of any shape."""
        steps = ((probabilities[..., None] - self.start) * self.rate).clamp(0.0, 1.0)
        return self.base + (steps * self.jump).sum(-1)


def between_centres(blocks: Blocks) -> Ramps:
    """Return the function that is linear between the centres of neighbouring blocks, and constant outside (Oron and Flournoy 2017)."""
    return _ramps(blocks, blocks.centre[:-1], blocks.centre[1:])


def between_blocks(blocks: Blocks) -> Ramps:
    """Return the function that is constant in each block, and linear in the gaps between neighbouring blocks."""
    return _ramps(blocks, blocks.last[:-1], blocks.first[1:])


def _ramps(blocks: Blocks, start: Tensor, end: Tensor) -> Ramps:
    width = torch.maximum(end - start, NARROWEST * end).clamp_min(NEGLIGIBLE)
    return Ramps(float(blocks.frequency[0]), start, 1 / width, blocks.frequency.diff())


def _distinct(probabilities: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct probabilities, ascending, how many samples have each, and for how many of those the class is right."""
    values, place, counts = torch.unique(probabilities.double(), return_inverse=True, return_counts=True)
    hits = torch.zeros_like(values).index_add(0, place, right.double())
    return values, counts.double(), hits


def _summed(number: Tensor, values: Tensor) -> Tensor:
    """Sum the values of each block, [B]; ``number`` holds the ascending numbers of their blocks."""
    return torch.zeros(int(number[-1]) + 1, dtype=torch.float64).index_add(0, number, values)


def _blocks(values: Tensor, counts: Tensor, hits: Tensor, number: Tensor) -> Blocks:
    total, lengths = _summed(number, counts), torch.bincount(number)
    ends = lengths.cumsum(0)
    centre, frequency = _summed(number, counts * values) / total, _summed(number, hits) / total
    return Blocks(values[ends - lengths], values[ends - 1], centre, frequency, total)
