"""``fold-layer-norm``: move the scale and shift of a layer norm into the grouped linear layers that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sparsify.deployment.packing import best_packing
from sparsify.ir import Program, Stage, surgery
from sparsify.ir.layers import add_bias, layer_of, own_parameter, reads_of, set_parameter, tensor_of
from sparsify.ir.traits import argument, traits
from sparsify.passes.base import DEPLOYED, Effect, Kept, Pass, PassLog


@dataclass(frozen=True)
class FoldLayerNorm(Pass):
    """Move the scale and shift of a layer norm into the grouped linear layers after it, if nothing else reads the norm.

    With the normalised value n: W (s * n + t) + b = (W s) n + (W t + b). Zero weights stay zero. Dense layers would gain nothing, because
    runtimes have one operator for a whole layer norm. They have none for feature-major values, where scale and shift are two operators.
    """

    name: ClassVar = "fold-layer-norm"
    requires: ClassVar = (Stage.DEPLOYED,)
    effects: ClassVar = Effect.EVAL_GRAPH | Effect.NAMES | Effect.WEIGHTS

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return DEPLOYED

    def run(self, program: Program) -> PassLog:
        log, reads = PassLog(self.name), reads_of(program)
        for norm in [n for n in program.phases["eval"].graph.nodes if traits(n).name == "layer_norm"]:
            where = str(norm.meta.get("owner") or norm.name)
            reason = _refused(program, norm, reads)
            if reason:
                log.skip(where, reason)
            else:
                _fold(program, norm)
                log.change(where)
        if log.changed:
            surgery.erase_unused(program)
        return log


def _refused(program: Program, norm: fx.Node, reads: dict[str, int]) -> str:
    if len(argument(norm, "normalized_shape")) != 1:
        return "it normalises more than the last dimension"
    given = [argument(norm, name) for name in ("weight", "bias")]
    if any(value is not None and (not isinstance(value, fx.Node) or value.op != "get_attr") for value in given):
        return "its scale or shift is computed"
    if all(value is None for value in given):
        return "it has neither scale nor shift"
    readers = [layer_of(user) for user in norm.users]
    if not readers or any(r is None or r.is_conv or r.input is not norm for r in readers):
        return "something else than linear layers reads it"
    for reader in readers:
        assert reader is not None
        weight = own_parameter(program, reader.weight, reads)
        if weight is None or (reader.bias is not None and own_parameter(program, reader.bias, reads) is None):
            return "a parameter of a layer that reads it is used more than once"
        if best_packing(weight)[0] is None:
            return "a layer that reads it is dense"
    return ""


def _fold(program: Program, norm: fx.Node) -> None:
    given = (argument(norm, name) for name in ("weight", "bias"))
    scale, shift = (None if value is None else tensor_of(program, value).double() for value in given)
    for reader in filter(None, map(layer_of, list(norm.users))):
        weight = tensor_of(program, reader.weight)
        if shift is not None:
            made = (weight.double() @ shift).to(weight.dtype)
            if reader.bias is not None:
                set_parameter(program, reader.bias, tensor_of(program, reader.bias) + made)
            else:
                add_bias(program, "eval", reader.node, made)
        if scale is not None:
            set_parameter(program, reader.weight, (weight.double() * scale).to(weight.dtype))
    for name in ("weight", "bias"):
        surgery.set_argument(norm, name, None)
