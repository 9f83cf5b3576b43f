"""``absorb-biases``: an output that nothing reads becomes a constant, and the layers that read its layer take their bias from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from sparsify.deployment.packing import best_packing
from sparsify.ir import Program, Stage, surgery
from sparsify.passes.base import DEPLOYED, Effect, Kept, Pass, PassLog
from sparsify.passes.eliminate_unread_outputs import Flow, follow, own_parameter, reads_of, set_parameter

aten = torch.ops.aten


@dataclass(frozen=True)
class AbsorbBiases(Pass):
    """Give up the biases of linear layers that read another linear layer with an output to spare.

    The spare output, one whose every reader has only zeros for it, is made 1 by its bias, or by the constant that its layer reads. It
    arrives as what the activation makes of 1, and a column of a reader's weight does what its bias did: an addition less for one more
    input. For fp32: a bias among the weights would widen the range of a quantised matrix.
    """

    name: ClassVar = "absorb-biases"
    requires: ClassVar = (Stage.DEPLOYED,)
    effects: ClassVar = Effect.EVAL_GRAPH | Effect.WEIGHTS

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return DEPLOYED

    def run(self, program: Program) -> PassLog:
        log, reads = PassLog(self.name), reads_of(program)
        constants: dict[
            fx.Node, tuple[int, float]
        ] = {}  # layer without its bias: the column that stands for it, and the value it meets
        for node in program.phases["eval"].graph.nodes:
            weight = own_parameter(program, node, 1, reads) if node.target is aten.linear.default else None
            if weight is None:
                continue
            flow, name = follow(program, node, weight, reads), str(node.args[1].target)
            reason = _refused(program, node, flow, reads, constants)
            if reason:
                log.skip(name, reason)
            else:
                _absorb(program, node, flow, constants)
                for reader in flow.readers:
                    log.change(str(reader.args[1].target))  # type: ignore[union-attr]
        if log.changed:
            surgery.erase_dead(program, "eval")
        return log


def _refused(
    program: Program, layer: fx.Node, flow: Flow, reads: dict[str, int], constants: dict[fx.Node, tuple[int, float]]
) -> str:
    if flow.reason or not flow.readers:
        return flow.reason or "nothing reads its outputs in the graph"
    if layer not in constants and own_parameter(program, layer, 2, reads) is None:
        return "it has no bias of its own to make the constant"
    weights = [_weight(program, reader) for reader in flow.readers]
    if any(own_parameter(program, reader, 2, reads) is None for reader in flow.readers):
        return "a layer that reads it has no bias of its own"
    if any(packing is None or packing.chunk > 1 for packing in (best_packing(weight)[0] for weight in weights)):
        return "a layer that reads it is dense, or keeps inputs in chunks"
    if _spare(weights) is None:
        return "all its outputs are read"
    return "" if _constant(flow) else "its activation makes 0 of 1"


def _absorb(program: Program, layer: fx.Node, flow: Flow, constants: dict[fx.Node, tuple[int, float]]) -> None:
    place, made = _spare([_weight(program, reader) for reader in flow.readers]), _constant(flow)
    assert place is not None
    row = _weight(program, layer).clone()
    row[place] = 0.0
    if layer in constants:
        column, met = constants[layer]
        row[place, column] = 1.0 / met
    else:
        bias = _tensor(program, layer.args[2]).clone()
        bias[place] = 1.0
        set_parameter(program, layer.args[2], bias)
    set_parameter(program, layer.args[1], row)
    for reader in flow.readers:
        columns, offset = _weight(program, reader).clone(), _tensor(program, reader.args[2])
        columns[:, place] = (offset.double() / made).to(columns.dtype)
        set_parameter(program, reader.args[1], columns)
        surgery.set_arguments(reader, reader.args[:2])
        constants[reader] = place, made


def _weight(program: Program, layer: fx.Node) -> Tensor:
    return _tensor(program, layer.args[1])


def _tensor(program: Program, node: Any) -> Tensor:
    return program.get_parameter(str(node.target)).detach()


def _spare(weights: list[Tensor]) -> int | None:
    """The last output that no weight [O, I] reads."""
    unread = torch.stack([(weight == 0).all(dim=0) for weight in weights]).all(dim=0).nonzero()
    return int(unread[-1]) if len(unread) else None


def _constant(flow: Flow) -> float:
    """What the elementwise operators between a layer and its readers make of 1; 0 where they differ."""
    made = {flow.values[0]: torch.ones((), dtype=torch.float64)}
    for value in flow.values[1:]:
        made[value] = value.target(made[value.args[0]].clone(), *value.args[1:], **value.kwargs)  # type: ignore[operator, index]
    found = {float(made[reader.args[0]]) for reader in flow.readers}  # type: ignore[index]
    return found.pop() if len(found) == 1 else 0.0
