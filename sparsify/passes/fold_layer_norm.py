"""``fold-layer-norm``: the scale and shift of a layer norm become part of the grouped linear layers that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from sparsify.deployment.packing import best_packing
from sparsify.ir import Program, Stage, surgery
from sparsify.passes.base import DEPLOYED, Effect, Kept, Pass, PassLog
from sparsify.passes.eliminate_unread_outputs import own_parameter, reads_of, set_parameter

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldLayerNorm(Pass):
    """Move the scale and shift of a layer norm into the grouped linear layers after it, where nothing else reads the norm.

    W (s * n + t) + b = (W s) n + (W t + b), n being the normalised value. Zeros stay zeros. Before dense layers nothing is gained: runtimes
    have an operator for a whole layer norm, but none for one of feature-major values, of which scale and shift are two operators.
    """

    name: ClassVar = "fold-layer-norm"
    requires: ClassVar = (Stage.DEPLOYED,)
    effects: ClassVar = Effect.EVAL_GRAPH | Effect.NAMES | Effect.WEIGHTS

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return DEPLOYED

    def run(self, program: Program) -> PassLog:
        log, reads = PassLog(self.name), reads_of(program)
        for norm in [n for n in program.phases["eval"].graph.nodes if n.target is aten.layer_norm.default]:
            where = str(norm.meta.get("owner") or norm.name)
            reason = _refused(program, norm, reads)
            if reason:
                log.skip(where, reason)
            else:
                _fold(program, norm)
                log.change(where)
        if log.changed:
            surgery.erase_dead(program, "eval")
        return log


def _refused(program: Program, norm: fx.Node, reads: dict[str, int]) -> str:
    if norm.kwargs or len(norm.args[1]) != 1:  # type: ignore[arg-type]
        return "it normalises more than the last dimension"
    given = [norm.args[index] for index in (2, 3) if len(norm.args) > index and norm.args[index] is not None]
    if any(not isinstance(value, fx.Node) or value.op != "get_attr" for value in given):
        return "its scale or shift is computed"
    if all(value is None for value in _affine(program, norm)):
        return "it has neither scale nor shift"
    if not norm.users or any(user.target is not aten.linear.default or user.args[0] is not norm for user in norm.users):
        return "something else than linear layers reads it"
    for reader in norm.users:
        weight, has_bias = own_parameter(program, reader, 1, reads), len(reader.args) > 2 and reader.args[2] is not None
        if weight is None or (has_bias and own_parameter(program, reader, 2, reads) is None):
            return "a parameter of a layer that reads it is used more than once"
        if best_packing(weight)[0] is None:
            return "a layer that reads it is dense"
    return ""


def _affine(program: Program, norm: fx.Node) -> tuple[Tensor | None, Tensor | None]:
    """Scale and shift, [F] each, in float64."""
    given = (norm.args[index] if len(norm.args) > index else None for index in (2, 3))
    scale, shift = (
        program.tensor(str(value.target)).detach().double() if isinstance(value, fx.Node) else None for value in given
    )
    return scale, shift


def _fold(program: Program, norm: fx.Node) -> None:
    scale, shift = _affine(program, norm)
    for reader in list(norm.users):
        source, bias = reader.args[1], reader.args[2] if len(reader.args) > 2 else None
        assert isinstance(source, fx.Node)
        weight = program.get_parameter(str(source.target)).detach()
        if shift is not None:
            made = (weight.double() @ shift).to(weight.dtype)
            if isinstance(bias, fx.Node):
                set_parameter(program, bias, program.get_parameter(str(bias.target)).detach() + made)
            else:
                surgery.add_bias(program, "eval", reader, made)
        if scale is not None:
            set_parameter(program, source, (weight.double() * scale).to(weight.dtype))
    surgery.set_arguments(norm, (*norm.args[:2], None, None, *norm.args[4:]))
