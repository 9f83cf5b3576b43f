"""``order-outputs``: outputs that read the same inputs next to each other, at no cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsify.ir import Program, Stage
from sparsify.ir.channels import Channels, channel_sets
from sparsify.parts.grouping import order_by_inputs, shared_inputs
from sparsify.passes.base import Effect, Pass, PassLog, Preserves


@dataclass(frozen=True)
class OrderOutputs(Pass):
    """Reorder the outputs of layers so that those which read the same inputs stand together, as a grouped form needs them.

    Groups are found in the zeros of the weights, whatever pattern made them. Only weights change: rows of the layers that write the
    values, columns of those that read them, and what has one value a channel in between. Where the order of outputs is not free (they are
    outputs of the program, or are read by something that does not follow), layers stay as they are.
    """

    name: ClassVar = "order-outputs"
    requires: ClassVar = (Stage.FOLDED,)
    effects: ClassVar = Effect.WEIGHTS
    preserves: ClassVar = Preserves.OUTPUTS_NUMERICALLY

    def run(self, program: Program) -> PassLog:
        log, training = PassLog(self.name), channel_sets(program, "train")
        for channels in channel_sets(program):
            order, grouped = _order(program, channels)
            if order is None:
                continue
            where = ", ".join(grouped)
            if channels.pinned or channels not in training:
                reason = channels.pinned or "the train phase reads them in another way"
                log.skip(where, f"the order of its outputs is not free: {reason}")
            else:
                _reorder(program, channels, order)
                log.change(where)
        return log


def _order(program: Program, channels: Channels) -> tuple[Tensor | None, list[str]]:
    """The order in which all the writers that have groups have them together, where it is not the present one, and those writers."""
    used: dict[str, Tensor] = {}
    rows: list[int] = []
    for name in dict.fromkeys(channels.writers):
        weight = program.get_parameter(name).detach()
        if weight.ndim < 2:
            continue
        reads = (weight != 0).flatten(2).any(dim=2) if weight.ndim > 2 else weight != 0
        if found := shared_inputs(reads):
            used[name] = reads
            rows.append(found[0])
    if not used:
        return None, []
    together = torch.cat([reads.cpu() for reads in used.values()], dim=1)
    order = order_by_inputs(together, min(rows)) if all(count % min(rows) == 0 for count in rows) else None
    if order is None or torch.equal(order, torch.arange(len(order))):
        return None, []
    return order, list(used)


def _reorder(program: Program, channels: Channels, order: Tensor) -> None:
    with torch.no_grad():
        for name in dict.fromkeys((*channels.writers, *channels.vectors)):
            value = program.tensor(name)
            value.copy_(value[order.to(value.device)])
        for name, run in channels.readers:
            weight = program.get_parameter(name)
            columns = (order[:, None] * run + torch.arange(run)).reshape(-1).to(weight.device)
            weight.copy_(weight[:, columns])
