"""``eliminate-unread-outputs``: remove the outputs of a layer for which every reader has only zero weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsify.deployment.packing import best_packing
from sparsify.ir import Program, Stage, surgery
from sparsify.ir.channels import Channels, channel_sets
from sparsify.ir.layers import resize
from sparsify.ir.traits import kind_of
from sparsify.parts.patterns.grouped import LANES
from sparsify.passes.base import DEPLOYED, Effect, Kept, Pass, PassLog


@dataclass(frozen=True)
class EliminateUnreadOutputs(Pass):
    """Remove outputs of a layer for which every reader has only zero weights.

    The pass follows outputs through everything that does not mix channels (activations, pooling, batch norms, depthwise convolutions,
    residual additions, flattening) to the layers that read them, and also removes the inputs of those layers. Values that are added
    together lose the same outputs. If anything else reads the outputs, all of them stay. Groups keep equal sizes; for convolutions, these
    are multiples of 16.
    """

    name: ClassVar = "eliminate-unread-outputs"
    requires: ClassVar = (Stage.DEPLOYED,)
    effects: ClassVar = Effect.EVAL_GRAPH | Effect.WEIGHTS

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return DEPLOYED

    def run(self, program: Program) -> PassLog:
        log, sets, removed = PassLog(self.name), channel_sets(program), dict[str, tuple[int, int]]()
        waiting = [*reversed(range(len(sets)))]  # readers first: layers before them need not make what they drop
        reasons: dict[int, str] = {}
        while waiting:
            place = waiting.pop(0)
            channels = sets[place]
            before = len(program.tensor(channels.writers[0]))
            reason = _eliminate(program, channels)
            if reason is not None:
                reasons.setdefault(place, reason)
                continue
            after = len(program.tensor(channels.writers[0]))
            for name in channels.writers:
                removed[name] = after, removed.get(name, (0, before))[1]
            fewer = (i for i, s in enumerate(sets) if any(name in channels.writers for name, _ in s.readers))
            waiting += [i for i in fewer if i not in waiting and i != place]
        for place, reason in reasons.items():
            for name in sets[place].writers:
                if name not in removed:
                    log.skip(name, reason)
        for name, (after, before) in removed.items():
            log.change(f"{name}: {after} of {before} outputs")
        if log.changed:
            surgery.erase_dead(program, "eval")
        return log


def _eliminate(program: Program, channels: Channels) -> str | None:
    """Remove the channels of a set that nothing reads; returns why all of them stay, or None if some were removed."""
    if channels.pinned or channels.fixed or not channels.readers:
        return channels.pinned or channels.fixed or "nothing reads its outputs in the graph"
    readers = {name: program.tensor(name).detach() for name, _ in channels.readers}
    packings = {name: best_packing(weight)[0] for name, weight in readers.items()}
    chunk = min((max(p.chunk // run, 1) for name, run in channels.readers if (p := packings[name])), default=1)
    live = torch.stack([_read(readers[name], run) for name, run in channels.readers]).any(dim=0)
    writers = [program.tensor(name).detach() for name in dict.fromkeys(channels.writers)]
    rows = math.gcd(*(p.rows if (p := best_packing(weight)[0]) else len(weight) for weight in writers))
    kept = _kept(live, rows, max(chunk, LANES if any(weight.ndim > 2 for weight in writers) else 1))
    if len(kept) == len(live):
        return "all its groups have outputs that are read"
    for name in dict.fromkeys((*channels.writers, *channels.vectors)):
        resize(program, name, _taken(program.tensor(name), kept, dim=0))
    for name, run in channels.readers:
        columns = (kept[:, None] * run + torch.arange(run)).flatten()
        resize(program, name, _taken(program.tensor(name), columns, dim=1))
    for node in channels.depthwise:
        surgery.set_argument(node, "groups", len(kept))
    for node, axis in channels.values.items():
        size = len(kept) * axis.run
        node.meta["spec"] = surgery.respec(node, axis.dimension, size)
        if kind_of(node) == "reshape":
            surgery.resize(node, axis.dimension, size)
    return None


def _read(weight: Tensor, run: int) -> Tensor:
    """Return bool [C]: whether a weight [O, C * run, *K] reads a channel."""
    return (weight != 0).movedim(1, 0).flatten(1).any(dim=1).reshape(-1, run).any(dim=1).cpu()


def _taken(values: Tensor, index: Tensor, *, dim: int) -> Tensor:
    return values.detach().index_select(dim, index.to(values.device))


def _kept(live: Tensor, rows: int, step: int) -> Tensor:
    """Choose the outputs to keep: the live ones of each group, and enough dead ones that all groups have the same multiple of ``step``."""
    alive = live.reshape(-1, rows)
    count = min(-(-max(int(alive.sum(dim=1).max()), 1) // step) * step, rows)
    places = alive.int().sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
    return (places + torch.arange(len(alive))[:, None] * rows).flatten()
