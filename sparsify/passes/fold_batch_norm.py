"""``fold-batch-norm``: merge batch norms into the convolution or linear layer before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from sparsify.ir import Program, Stage, surgery
from sparsify.ir.nodes import MASK_OPERATORS
from sparsify.passes.base import DEPLOYED, Effect, Kept, Pass, PassLog

aten = torch.ops.aten
_LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)
_LAYERS += (aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold a batch norm into the weights and bias of the layer before it, where nothing else reads that layer, and remove the norm.

    For deployment: batch statistics are gone, so the train phase becomes a copy of the eval phase, if a norm is folded. Zeros stay zeros.
    Arithmetic in float64, rounded once. Left alone, with the reason: a weight or bias that is computed, shared or read elsewhere, and a
    norm without running statistics, or whose scale and shift are computed.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4))
        >>> program = sp.trace(model, torch.rand(2, 8)).eval()
        >>> folded = sp.Pipeline.parse("fold-batch-norm")(program)
        >>> "batch_norm" in program.text(), "batch_norm" in folded.text()
        (True, False)
    """

    name: ClassVar = "fold-batch-norm"
    requires: ClassVar = (Stage.TRACED, Stage.MASKED, Stage.FOLDED)
    effects: ClassVar = Effect.GRAPH | Effect.NAMES | Effect.WEIGHTS

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return DEPLOYED

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        for norm in [n for n in program.phases["eval"].graph.nodes if n.target is aten.batch_norm.default]:
            where = str(norm.meta.get("owner") or norm.name)
            reason = self._fold(program, norm)
            if reason:
                log.skip(where, reason)
            else:
                log.change(where)
        if log.changed:
            surgery.erase_dead(program, "eval")
            surgery.copy_phase(program, "eval", "train")
        return log

    def _fold(self, program: Program, norm: fx.Node) -> str | None:
        layer = norm.args[0]
        if not isinstance(layer, fx.Node) or layer.target not in _LAYERS or norm.kwargs:
            return "its input is not a convolution or linear layer"
        if len(layer.users) > 1:
            return f"%{layer.name} has other readers"
        spec = layer.meta.get("spec")
        if layer.target is aten.linear.default and (spec is None or len(spec.shape) != 2):
            return "its channel dimension is not the layer's output dimension"
        if norm.args[5]:
            return "it computes the statistics of each batch, in eval mode as well"
        if {"weight", "bias"} & layer.kwargs.keys():
            return "the layer takes its parameters by name"
        weight, bias = own_tensor(program, layer, 1), own_tensor(program, layer, 2)
        if isinstance(weight, str) or weight is None:
            return weight or "the layer has no weight"
        if isinstance(bias, str):
            return bias
        values = [_statistic(program, argument) for argument in norm.args[1:5]]
        if isinstance(reason := next((v for v in values if isinstance(v, str)), None), str):
            return reason
        gamma, beta, mean, variance = (None if isinstance(value, str) else value for value in values)
        if mean is None or variance is None:
            return "it has no running statistics"
        scale = (variance.double() + float(norm.args[7])).rsqrt() * (1.0 if gamma is None else gamma.double())  # type: ignore[arg-type]
        parameter = program.get_parameter(str(weight.target))
        old_bias = torch.zeros_like(scale) if bias is None else program.tensor(str(bias.target)).detach().double()
        new_bias = (old_bias - mean.double()) * scale + (0.0 if beta is None else beta.double())
        shaped = scale.view(-1, *[1] * (parameter.ndim - 1))
        new_weight = (parameter.detach().double() * shaped).to(parameter.dtype)
        if not bool(new_weight.isfinite().all() and new_bias.isfinite().all()):
            return "its statistics make weights that are not finite"
        surgery.rewrite(program, str(weight.target), new_weight)
        if bias is not None:
            surgery.rewrite(program, str(bias.target), new_bias.to(parameter.dtype))
        else:
            surgery.add_bias(program, "eval", layer, new_bias.to(parameter.dtype))
        surgery.bypass(program, "eval", norm, layer)
        return None


def own_tensor(program: Program, layer: fx.Node, index: int) -> fx.Node | str | None:
    """The node of the parameter that is an argument of a layer, through its mask; None without one, else why it cannot be changed."""
    value = layer.args[index] if len(layer.args) > index else None
    if value is None:
        return None
    what = "weight" if index == 1 else "bias"
    source = _source(value)
    if source is None:
        return f"the layer's {what} is computed, not a parameter"
    if str(source.target) not in dict(program.named_parameters(remove_duplicate=False)):
        return f"the layer's {what} is a buffer, not a parameter"
    if _readers(program, source) > 1:
        return "the layer's parameters are used more than once"
    return source


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


def _statistic(program: Program, value: object) -> Tensor | str | None:
    """A parameter or buffer of a norm, None where it has none, or why its value is not known."""
    if value is None:
        return None
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return "its scale, shift or statistics are computed"
    return program.tensor(str(value.target)).detach()
