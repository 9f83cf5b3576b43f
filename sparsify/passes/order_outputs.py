"""``order-outputs``: put outputs that read the same inputs next to each other; this costs nothing if their order is free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsify.deployment.linear_times import Use
from sparsify.deployment.packing import LEAST_GAIN, best_packing, inputs_read, order_of_outputs, predicted_gain
from sparsify.ir import Program, Stage, surgery
from sparsify.ir.channels import Channels, channel_sets
from sparsify.ir.layers import Layer, layers, own_parameter, reads_of, take_outputs
from sparsify.parts.patterns.grouping import order_by_inputs, shared_inputs
from sparsify.passes.base import DEPLOYED, Effect, Kept, Pass, PassLog
from sparsify.passes.linear_uses import SIZES_HELP, check_sizes, sizes_of, use_of
from sparsify.passes.options import option

aten = torch.ops.aten


@dataclass(frozen=True)
class OrderOutputs(Pass):
    """Reorder the outputs of layers so that outputs which read the same inputs are adjacent, as grouped layers need them.

    The pass finds groups in the zeros of the weights, for any pattern. It only changes weights: rows of the layers that write the values,
    columns of the layers that read them, and parameters with one value per channel in between. The order is not free if the values are
    outputs of the program, or if a reader cannot be reordered or reads chunks. Then the pass only reorders a layer if a cost model predicts
    that it gains, for the rows that it computes, despite a selection that restores the order.

    Raises:
        PassError: If a size names no dimension that varies.
    """

    name: ClassVar = "order-outputs"
    requires: ClassVar = (Stage.DEPLOYED,)
    effects: ClassVar = Effect.EVAL_GRAPH | Effect.NAMES | Effect.WEIGHTS

    sizes: tuple[str, ...] = option((), SIZES_HELP, reads=check_sizes)

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return DEPLOYED

    def run(self, program: Program) -> PassLog:
        log, single, sizes = PassLog(self.name), _layers(program), sizes_of(program, self.sizes)
        for channels in channel_sets(program):
            order, grouped = _common_order(program, channels)
            reason = channels.pinned or (None if order is None else _chunked(program, channels))
            together = list[str]()
            if order is not None and reason is None:
                _reorder(program, channels, order)
                log.change(", ".join(grouped))
                together = grouped
            for name in dict.fromkeys(channels.writers):
                if name in together:
                    continue
                if name in single and _order_and_undo(program, name, single[name], sizes):
                    log.change(f"{name}: undone by a selection")
                elif name in grouped:
                    log.skip(name, f"the order of its outputs is not free: {reason}")
        return log


def _layers(program: Program) -> dict[str, Layer]:
    """Returns, for each weight, the only layer that reads it and its bias."""
    reads, found = reads_of(program), dict[str, Layer]()
    for layer in layers(program):
        own = own_parameter(program, layer.weight, reads) is not None
        if own and layer.groups == 1 and (layer.bias is None or own_parameter(program, layer.bias, reads) is not None):
            found[str(layer.weight.target)] = layer
    return found


def _common_order(program: Program, channels: Channels) -> tuple[Tensor | None, list[str]]:
    """Find an order in which each group's outputs are adjacent, None if it is the present one; also returns the writers with groups."""
    weights = {name: program.get_parameter(name).detach() for name in dict.fromkeys(channels.writers)}
    used = {name: inputs_read(weight).cpu() for name, weight in weights.items() if weight.ndim > 1}
    exact = {name: found[0] for name, reads in used.items() if (found := shared_inputs(reads))}
    if exact and all(count % min(exact.values()) == 0 for count in exact.values()):
        order = order_by_inputs(torch.cat([used[name] for name in exact], dim=1), min(exact.values()))
        if order is not None:
            return (None, []) if _is_plain(order) else (order, list(exact))
    if not used:
        return None, []
    order = order_of_outputs(torch.cat([*used.values()], dim=1))
    gains = {} if _is_plain(order) else {name: _gains(weights[name], order) for name in used}
    if any(after < before for before, after in gains.values()):
        return None, []
    faster = [name for name, (before, after) in gains.items() if after > before]
    return (order, faster) if faster else (None, [])


def _is_plain(order: Tensor) -> bool:
    return torch.equal(order, torch.arange(len(order)))


def _gains(weight: Tensor, order: Tensor, use: Use | None = None) -> tuple[float, float]:
    """Predict the speed-up over dense with the present order of outputs and with ``order``; 1 if a dense layer is as fast."""
    tables = (weight, weight[order.to(weight.device)])
    packings = [best_packing(table, use=use)[0] for table in tables]
    before, after = (1.0 if p is None else predicted_gain(t, p, use) for t, p in zip(tables, packings, strict=True))
    return before, after


def _chunked(program: Program, channels: Channels) -> str | None:
    """Name a layer that reads these channels in chunks which a new order would break; None if there is none."""
    for name, run in channels.readers:
        packing = best_packing(program.get_parameter(name).detach())[0]
        if packing is not None and run % packing.chunk:
            return f"{name} keeps them in chunks"
    return None


def _reorder(program: Program, channels: Channels, order: Tensor) -> None:
    for name in dict.fromkeys((*channels.writers, *channels.vectors)):
        value = program.tensor(name)
        surgery.rewrite(program, name, value[order.to(value.device)])
    for name, run in channels.readers:
        weight = program.get_parameter(name)
        columns = (order[:, None] * run + torch.arange(run)).reshape(-1).to(weight.device)
        surgery.rewrite(program, name, weight[:, columns])


def _order_and_undo(program: Program, name: str, layer: Layer, sizes: Mapping[str, int]) -> bool:
    """Reorder one layer's outputs and restore the order by a selection, if that is predicted to be faster; returns whether it was."""
    weight = program.get_parameter(name).detach()
    found = shared_inputs(inputs_read(weight))
    order = order_of_outputs(weight) if found is None else found[1]
    use = None if layer.is_conv else use_of(program, layer.node, sizes)
    before, after = (1.0, 1.0) if _is_plain(order) else _gains(weight, order, use)
    if after <= before or after < LEAST_GAIN:
        return False
    take_outputs(program, layer, order)
    surgery.add_state(program, f"{name}_outputs", order.argsort())
    node, users = layer.node, list(layer.node.users)
    index = surgery.state_node(program, "eval", f"{name}_outputs", before=node)
    dimension = layer.axis if layer.is_conv else -1
    rows = surgery.call_after(program, "eval", node, aten.index_select.default, (node, dimension, index))
    surgery.reroute(node, rows, users=users)
    return True
