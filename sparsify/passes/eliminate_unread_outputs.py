"""``eliminate-unread-outputs``: a layer no longer makes the outputs for which every reader has only zeros."""

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
    """Remove the outputs of a layer whose every reader has only zeros for them.

    Outputs are followed through all that keeps channels apart (activations, pooling, batch norms, depthwise convolutions, residual
    additions, flattening) to the layers that read them, whose inputs go as well, so that nothing is left to run. Values that are added
    together lose the same outputs. Where something else reads the outputs, all of them stay. Groups stay of equal size, for convolutions
    a multiple of 16.
    """

    name: ClassVar = "eliminate-unread-outputs"
    requires: ClassVar = (Stage.DEPLOYED,)
    effects: ClassVar = Effect.EVAL_GRAPH | Effect.WEIGHTS

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return DEPLOYED

    def run(self, program: Program) -> PassLog:
        log, sets, removed = PassLog(self.name), channel_sets(program), dict[str, tuple[int, int]]()
        waiting = [*reversed(range(len(sets)))]  # readers first: what they drop, their inputs need not make
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
    """Remove what nothing reads of a set of channels; or the reason why all of them stay."""
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
    """Bool [C], whether a weight [O, C * run, *K] reads anything of a channel."""
    return (weight != 0).movedim(1, 0).flatten(1).any(dim=1).reshape(-1, run).any(dim=1).cpu()


def _taken(values: Tensor, index: Tensor, *, dim: int) -> Tensor:
    return values.detach().index_select(dim, index.to(values.device))


def _kept(live: Tensor, rows: int, step: int) -> Tensor:
    """Positions of outputs to keep: the live ones of each group, and as many dead ones as make groups equal and a multiple of ``step``."""
    alive = live.reshape(-1, rows)
    count = min(-(-max(int(alive.sum(dim=1).max()), 1) // step) * step, rows)
    places = alive.int().sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
    return (places + torch.arange(len(alive))[:, None] * rows).flatten()
