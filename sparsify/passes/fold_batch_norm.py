"""``fold-batch-norm``: merge batch norms into the convolution or linear layer before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from sparsify.ir import Program, Stage, surgery
from sparsify.passes.base import DEPLOYED, Effect, Kept, Pass, PassLog
from sparsify.passes.eliminate_unread_outputs import reads_of

aten = torch.ops.aten
_LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)
_LAYERS += (aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold a batch norm into the weights and bias of the layer before it, where nothing else reads that layer, and remove the norm.

    Zeros stay zeros. Arithmetic in float64, rounded once. Left alone, with the reason: a weight or bias that is computed, shared or read
    elsewhere, and a norm without running statistics, or whose scale and shift are computed.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4))
        >>> program = sp.trace(model, torch.rand(2, 8)).eval()
        >>> folded = sp.Pipeline.parse("deploy | fold-batch-norm")(program)
        >>> "batch_norm" in program.text(), "batch_norm" in folded.text()
        (True, False)
    """

    name: ClassVar = "fold-batch-norm"
    requires: ClassVar = (Stage.DEPLOYED,)
    effects: ClassVar = Effect.EVAL_GRAPH | Effect.NAMES | Effect.WEIGHTS

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
        weight, bias = _own(program, layer, 1), _own(program, layer, 2)
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


def _own(program: Program, layer: fx.Node, index: int) -> fx.Node | str | None:
    """The node of the parameter that is an argument of a layer; None without one, else why it cannot be changed."""
    value, what = layer.args[index] if len(layer.args) > index else None, "weight" if index == 1 else "bias"
    if value is None:
        return None
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return f"the layer's {what} is computed, not a parameter"
    reads = reads_of(program).get(str(value.target))
    if reads is None:
        return f"the layer's {what} is a buffer, not a parameter"
    return "the layer's parameters are used more than once" if reads > 1 else value


def _statistic(program: Program, value: object) -> Tensor | str | None:
    """A parameter or buffer of a norm, None where it has none, or why its value is not known."""
    if value is None:
        return None
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return "its scale, shift or statistics are computed"
    return program.tensor(str(value.target)).detach()
