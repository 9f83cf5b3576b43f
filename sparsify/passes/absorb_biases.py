"""``absorb-biases``: turn an output that nothing reads into a constant 1, and replace biases of the next layers by columns that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from sparsify.deployment.packing import best_packing
from sparsify.ir import Program, Stage, surgery
from sparsify.ir.channels import Channels, channel_sets
from sparsify.ir.layers import Layer, own_parameter, reads_of, set_parameter, tensor_of
from sparsify.ir.traits import apply, is_elementwise
from sparsify.passes.base import DEPLOYED, Effect, Kept, Pass, PassLog


@dataclass(frozen=True)
class AbsorbBiases(Pass):
    """Fold a linear layer's bias into its weight if the linear layer before it has a dead output.

    A dead output is one for which every reader has only zero weights. Its bias, or the constant that its own layer reads, sets it to 1, and
    the readers see what the activation makes of 1. A column of each reader's weight then does what its bias did, which saves an addition
    for one more input. Only for fp32: in a quantised matrix, a bias among the weights would widen the range of values.
    """

    name: ClassVar = "absorb-biases"
    requires: ClassVar = (Stage.DEPLOYED,)
    effects: ClassVar = Effect.EVAL_GRAPH | Effect.NAMES | Effect.WEIGHTS

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return DEPLOYED

    def run(self, program: Program) -> PassLog:
        log, reads = PassLog(self.name), reads_of(program)
        constants: dict[
            fx.Node, tuple[int, float]
        ] = {}  # by layer whose bias was folded: the column that replaces the bias, and the constant that this column reads
        for channels in channel_sets(program):
            for layer in channels.written_by:
                if layer.is_conv or own_parameter(program, layer.weight, reads) is None:
                    continue
                reason = _refused(program, layer, channels, reads, constants)
                if reason:
                    log.skip(str(layer.weight.target), reason)
                else:
                    _absorb(program, layer, channels, constants)
                    for reader in channels.read_by:
                        log.change(str(reader.weight.target))
        if log.changed:
            surgery.erase_unused(program)
        return log


def _refused(
    program: Program,
    layer: Layer,
    channels: Channels,
    reads: dict[str, int],
    constants: dict[fx.Node, tuple[int, float]],
) -> str:
    mixed = next((value for value in channels.values if value is not layer.node and not is_elementwise(value)), None)
    if channels.pinned or len(channels.written_by) > 1 or mixed is not None:
        return channels.pinned or (
            f"%{mixed} reads it" if len(channels.written_by) == 1 else "another layer's are added"
        )
    if not channels.read_by:
        return "nothing reads its outputs in the graph"
    if layer.node not in constants and own_parameter(program, layer.bias, reads) is None:
        return "it has no bias of its own to make the constant"
    if any(reader.is_conv or own_parameter(program, reader.bias, reads) is None for reader in channels.read_by):
        return "a layer that reads it has no bias of its own"
    weights = [tensor_of(program, reader.weight) for reader in channels.read_by]
    if any(packing is None or packing.chunk > 1 for packing in (best_packing(weight)[0] for weight in weights)):
        return "a layer that reads it is dense, or keeps inputs in chunks"
    if _spare(weights) is None:
        return "all its outputs are read"
    return "" if _constant(layer, channels) else "its activation makes 0 of 1"


def _absorb(program: Program, layer: Layer, channels: Channels, constants: dict[fx.Node, tuple[int, float]]) -> None:
    place = _spare([tensor_of(program, reader.weight) for reader in channels.read_by])
    made = _constant(layer, channels)
    assert place is not None
    row = tensor_of(program, layer.weight).clone()
    row[place] = 0.0
    if layer.node in constants:
        column, met = constants[layer.node]
        row[place, column] = 1.0 / met
    else:
        bias = tensor_of(program, layer.bias).clone()
        bias[place] = 1.0
        set_parameter(program, layer.bias, bias)
    set_parameter(program, layer.weight, row)
    for reader in channels.read_by:
        columns, offset = tensor_of(program, reader.weight).clone(), tensor_of(program, reader.bias)
        columns[:, place] = (offset.double() / made).to(columns.dtype)
        set_parameter(program, reader.weight, columns)
        surgery.set_argument(reader.node, "bias", None)
        constants[reader.node] = place, made


def _spare(weights: list[Tensor]) -> int | None:
    """Return the last output that none of the weights [O, I] reads; None if all are read."""
    unread = torch.stack([(weight == 0).all(dim=0) for weight in weights]).all(dim=0).nonzero()
    return int(unread[-1]) if len(unread) else None


def _constant(layer: Layer, channels: Channels) -> float:
    """Return what the elementwise operators between a layer and its readers make of 1; 0 if this differs between readers."""
    made = {layer.node: torch.ones((), dtype=torch.float64)}
    for value in channels.values:
        if value is not layer.node:
            made[value] = apply(value, lambda node: made[node].clone())
    found = {float(made[reader.input]) for reader in channels.read_by}
    return found.pop() if len(found) == 1 else 0.0
