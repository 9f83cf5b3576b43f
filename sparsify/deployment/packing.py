"""Packing: stores a weight whose groups of outputs read few inputs as small dense matrices, each with the inputs that it reads.

Groups are found in the zeros of the weight, for any pattern. A group that reads fewer inputs than the others is padded with inputs of
weight zero. A packing is therefore always exact; only its size depends on how well the zeros line up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.deployment.linear_times import Use, dense_time, grouped_time
from sparsify.parts.patterns.grouped import LANES

CHUNKS = (8, 4, 2)
MOST_DENSE = 0.65
"""Share of kept inputs above which a dense layer counts as equally fast. At 0.6, grouped MLPs and ResNets are still faster."""
LEAST_GAIN = 1.25
"""Least predicted speed-up for which the grouped form is chosen, if the caller does not consider the cost of operators around it."""
LEAST_ROWS = 8
"""Outputs per group of a linear layer from which the grouped form is considered."""
CONV_EFFICIENCY = {16: 0.45, 32: 0.65, 64: 0.8, 128: 0.9, 256: 0.95}
"""Speed of a convolution relative to a dense one with as many operations, by outputs per group (0 below the first): medians of ONNX Runtime
1.31 on one AVX-512 core."""


@dataclass(frozen=True)
class Packing:
    """How a weight [O, I, *K] is packed.

    Attributes:
        rows: outputs per group; there are O / rows groups.
        inputs: int64 [groups, k], ascending: the k inputs that each group reads.
        chunk: inputs come in aligned runs of this length, at least 1.
    """

    rows: int
    inputs: Tensor
    chunk: int

    @property
    def groups(self) -> int:
        return self.inputs.shape[0]

    def values(self, weight: Tensor) -> Tensor:
        """Pack the values of a weight: [O, I, *K] -> [groups, rows, k, *K]."""
        split = weight.detach().reshape(self.groups, self.rows, *weight.shape[1:])
        return torch.stack([part[:, index] for part, index in zip(split, self.inputs, strict=True)])

    def is_identity(self, inputs: int) -> bool:
        """Return whether each group reads its own consecutive part of the inputs, in order, and together they read all."""
        return torch.equal(self.inputs.flatten(), torch.arange(inputs))


def pack(weight: Tensor, rows: int) -> Packing:
    """Pack a weight in groups of ``rows`` consecutive outputs.

    Args:
        weight: [O, I, *K], 0 where inactive; convolutions (K not empty) keep a multiple of 16 inputs, or all.
        rows: outputs per group; must divide O.
    """
    return _packed(_by_groups(inputs_read(weight), rows), rows, is_conv=weight.ndim > 2)


def inputs_read(weight: Tensor) -> Tensor:
    """Return bool [O, I]: the inputs that each output reads.

    Args:
        weight: [O, I, *K], zeros where inactive.
    """
    used = weight.detach() != 0
    return used.flatten(2).any(dim=2) if weight.ndim > 2 else used


def _by_groups(used: Tensor, rows: int) -> Tensor:
    """Return bool [O / rows, I]: the inputs that each group reads."""
    return used.reshape(len(used) // rows, rows, -1).any(dim=1)


def _packed(used: Tensor, rows: int, *, is_conv: bool) -> Packing:
    """Make the packing of groups of ``rows`` outputs that read the inputs ``used``, bool [groups, I]."""
    inputs = used.shape[1]
    chunk = 1 if is_conv else _chunk(used)
    step = LANES if is_conv else chunk
    most = max(int(used.sum(dim=1).max()), 1)
    kept = min(-(-most // step) * step, inputs)
    # Used inputs first, then as many unused ones as are missing; chunks stay whole, because both parts consist of whole chunks.
    order = used.int().sort(dim=1, descending=True, stable=True).indices[:, :kept]
    return Packing(rows, order.sort(dim=1).values, chunk)


def order_of_outputs(weight: Tensor) -> Tensor:
    """Return an order [O] in which outputs that read the same inputs are adjacent; the identity if they already are.

    Args:
        weight: [O, I, *K], zeros where inactive.
    """
    sets = torch.unique(inputs_read(weight), dim=0, return_inverse=True)[1]
    first = torch.full((int(sets.max()) + 1,), len(sets)).scatter_reduce_(0, sets, torch.arange(len(sets)), "amin")
    return first[sets].sort(stable=True).indices


def _chunk(used: Tensor) -> int:
    """Return the longest run length of `CHUNKS` such that all used inputs [groups, I] form aligned runs."""
    groups, inputs = used.shape
    for size in CHUNKS:
        if inputs % size == 0:
            runs = used.reshape(groups, inputs // size, size)
            if torch.equal(runs.any(dim=2), runs.all(dim=2)):
                return size
    return 1


def predicted_gain(weight: Tensor, packing: Packing, use: Use | None = None) -> float:
    """Predict the speed-up over the dense layer, by `CONV_EFFICIENCY` or by the times of `sparsify.deployment.linear_times`.

    Args:
        weight: [O, I, *K].
        packing: a packing of the weight.
        use: how a linear layer is called; None: over many tokens.
    """
    kept = packing.inputs.shape[1]
    if weight.ndim > 2:
        return _between(CONV_EFFICIENCY, packing.rows) * weight.shape[1] / kept
    use = use or Use()
    dense = dense_time(use, *weight.shape)
    return dense / grouped_time(use, len(weight), packing.groups, kept, packing.chunk)


def _between(table: dict[int, float], rows: int) -> float:
    """Interpolate the table linearly at ``rows``: 0 below the first entry, the last value above the last entry."""
    below = max((r for r in table if r <= rows), default=0)
    above = min((r for r in table if r >= rows), default=below)
    if not below or above == below:
        return table.get(below, 0.0)
    return table[below] + (table[above] - table[below]) * (rows - below) / (above - below)


def best_packing(weight: Tensor, *, use: Use | None = None, force: bool = False) -> tuple[Packing | None, str]:
    """Find the packing with the highest predicted gain; returns None and the reason if the layer should stay dense.

    Args:
        weight: [O, I, *K], 0 where inactive.
        use: how a linear layer is called; the caller then considers the cost of operators around it. None: over many tokens.
        force: choose it whenever it leaves out inputs, whatever the prediction.
    """
    outputs, inputs = weight.shape[:2]
    sizes = [o for o in range(1, outputs + 1) if outputs % o == 0 and _allowed(weight, o, force=force)]
    packings, used = list[Packing](), {1: inputs_read(weight)}
    for rows in sizes:
        part = max(size for size in used if rows % size == 0)
        used[rows] = _by_groups(used[part], rows // part)
        packings.append(_packed(used[rows], rows, is_conv=weight.ndim > 2))
    fewer = [p for p in packings if p.inputs.shape[1] < inputs]
    if not fewer:
        return None, f"its groups of outputs read all of its {inputs} inputs"
    best = max(fewer, key=lambda p: (predicted_gain(weight, p, use), p.rows))
    gain, density = predicted_gain(weight, best, use), best.inputs.shape[1] / inputs
    if not force and (density > MOST_DENSE or gain < (LEAST_GAIN if use is None or weight.ndim > 2 else 1.0)):
        over = "" if use is None or weight.ndim > 2 else f" over {use.rows} {'row' if use.rows == 1 else 'rows'}"
        return (
            None,
            f"groups of {best.rows} read {density:.0%} of its inputs; a dense layer is predicted to be as fast{over}",
        )
    return (
        best,
        f"groups of {best.rows} read {best.inputs.shape[1]} of {inputs} inputs, predicted {gain:.1f} times as fast",
    )


def _allowed(weight: Tensor, rows: int, *, force: bool) -> bool:
    whole = weight.shape[0] == rows
    if weight.ndim > 2 and not force:
        return whole or rows % LANES == 0
    return whole or rows >= (1 if force else LEAST_ROWS)
