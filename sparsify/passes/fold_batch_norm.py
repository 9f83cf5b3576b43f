"""``fold-batch-norm``: merge batch norms into the convolution or linear layer before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from sparsify.ir import Program, Stage, surgery
from sparsify.ir.nodes import MASK_OPERATORS
from sparsify.passes.base import Effect, Pass, PassLog, Preserves

aten = torch.ops.aten
_LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)
_LAYERS += (aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Scale the weights and bias of a layer by the batch norm that alone reads it, and remove the batch norm.

    For deployment: batch statistics are gone, so the train phase becomes a copy of the eval phase. Zeros stay zeros.
    Arithmetic in float64, rounded once.
    """

    name: ClassVar = "fold-batch-norm"
    requires: ClassVar = (Stage.TRACED, Stage.MASKED, Stage.FOLDED)
    effects: ClassVar = Effect.GRAPH | Effect.NAMES | Effect.WEIGHTS
    preserves: ClassVar = Preserves.OUTPUTS_NUMERICALLY

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        for norm in [n for n in program.phases["eval"].graph.nodes if n.target is aten.batch_norm.default]:
            where = str(norm.meta.get("owner") or norm.name)
            reason = self._fold(program, norm)
            if reason:
                log.skip(where, reason)
            else:
                log.change(where)
        surgery.erase_dead(program, "eval")
        surgery.copy_phase(program, "eval", "train")
        return log

    def _fold(self, program: Program, norm: fx.Node) -> str | None:
        layer = norm.args[0]
        if not isinstance(layer, fx.Node) or layer.target not in _LAYERS:
            return "its input is not a convolution or linear layer"
        if len(layer.users) > 1:
            return f"%{layer.name} has other readers"
        spec = layer.meta.get("spec")
        if layer.target is aten.linear.default and (spec is None or len(spec.shape) != 2):
            return "its channel dimension is not the layer's output dimension"
        weight = _source(layer.args[1])
        bias = _source(layer.args[2]) if len(layer.args) > 2 else None
        if weight is None or _readers(program, weight) > 1 or (bias is not None and _readers(program, bias) > 1):
            return "the layer's parameters are used more than once"
        gamma, beta, mean, variance = (_value(program, argument) for argument in norm.args[1:5])
        assert mean is not None and variance is not None
        scale = (variance.double() + float(norm.args[7])).rsqrt() * (1.0 if gamma is None else gamma.double())  # type: ignore[arg-type]
        parameter = program.get_parameter(str(weight.target))
        old_bias = (
            torch.zeros_like(scale) if bias is None else program.get_parameter(str(bias.target)).detach().double()
        )
        new_bias = (old_bias - mean.double()) * scale + (0.0 if beta is None else beta.double())
        with torch.no_grad():
            shaped = scale.view(-1, *[1] * (parameter.ndim - 1))
            parameter.copy_((parameter.double() * shaped).to(parameter.dtype))
            if bias is not None:
                program.get_parameter(str(bias.target)).copy_(new_bias.to(parameter.dtype))
        if bias is None:
            surgery.add_bias(program, "eval", layer, new_bias.to(parameter.dtype))
        surgery.bypass(program, "eval", norm, layer)
        return None


def _source(value: object) -> fx.Node | None:
    """The ``get_attr`` node behind a weight argument, through its mask."""
    while isinstance(value, fx.Node) and (value.target in MASK_OPERATORS or value.op == "call_module"):
        value = value.args[0]
    return value if isinstance(value, fx.Node) and value.op == "get_attr" else None


def _readers(program: Program, node: fx.Node) -> int:
    """How many nodes of the eval phase read the tensor, under any of its names."""
    tensors = dict(program.named_parameters(remove_duplicate=False))
    tensor = tensors[str(node.target)]
    nodes = program.phases["eval"].graph.nodes
    direct = [n for n in nodes if n.op == "get_attr" and tensors.get(str(n.target)) is tensor]
    return sum(max(len(user.users), 1) if user.target in MASK_OPERATORS else 1 for n in direct for user in n.users)


def _value(program: Program, node: object) -> Tensor | None:
    return program.tensor(str(node.target)).detach() if isinstance(node, fx.Node) else None
