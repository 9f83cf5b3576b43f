"""``fold-batch-norm``: merge batch norms into the convolution or linear layer before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from sparsify.ir import Program, Stage, surgery
from sparsify.ir.layers import add_bias, layer_of, reads_of
from sparsify.ir.traits import arguments, traits
from sparsify.passes.base import DEPLOYED, Effect, Kept, Pass, PassLog


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold a batch norm into the layer before it if nothing else reads that layer, and remove the norm's parameters and statistics.

    Zero weights stay zero. The arithmetic is in float64 and rounds once. The pass skips, and logs why: layers whose weight or bias is
    computed, shared or read elsewhere; norms without running statistics; and norms whose scale or shift is computed.

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
        for norm in [n for n in program.phases["eval"].graph.nodes if traits(n).name == "batch_norm"]:
            where = str(norm.meta.get("owner") or norm.name)
            reason = self._fold(program, norm)
            if reason:
                log.skip(where, reason)
            else:
                log.change(where)
        if log.changed:
            surgery.erase_unused(program)
        return log

    def _fold(self, program: Program, norm: fx.Node) -> str | None:
        given = arguments(norm)
        layer = layer_of(given["input"])
        if layer is None:
            return "its input is not a convolution or linear layer"
        if len(layer.node.users) > 1:
            return f"%{layer.node.name} has other readers"
        if layer.axis != 1:
            return "its channel dimension is not the layer's output dimension"
        if given["training"]:
            return "it computes the statistics of each batch, in eval mode as well"
        weight, bias = _own(program, layer.weight, "weight"), _own(program, layer.bias, "bias")
        if isinstance(weight, str) or weight is None:
            return weight or "the layer has no weight"
        if isinstance(bias, str):
            return bias
        values = [_statistic(program, given[name]) for name in ("weight", "bias", "running_mean", "running_var")]
        if isinstance(reason := next((v for v in values if isinstance(v, str)), None), str):
            return reason
        gamma, beta, mean, variance = (None if isinstance(value, str) else value for value in values)
        if mean is None or variance is None:
            return "it has no running statistics"
        scale = (variance.double() + float(given["eps"])).rsqrt() * (1.0 if gamma is None else gamma.double())
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
            add_bias(program, "eval", layer.node, new_bias.to(parameter.dtype))
        surgery.bypass(program, "eval", norm, layer.node)
        return None


def _own(program: Program, value: fx.Node | None, what: str) -> fx.Node | str | None:
    """Return the node of the parameter that is an argument of a layer, None if there is no such argument, or why it cannot be changed."""
    if value is None:
        return None
    if value.op != "get_attr":
        return f"the layer's {what} is computed, not a parameter"
    reads = reads_of(program).get(str(value.target))
    if reads is None:
        return f"the layer's {what} is a buffer, not a parameter"
    return "the layer's parameters are used more than once" if reads > 1 else value


def _statistic(program: Program, value: object) -> Tensor | str | None:
    """Return a parameter or buffer of a norm, None if it has none, or why its value is unknown."""
    if value is None:
        return None
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return "its scale, shift or statistics are computed"
    return program.tensor(str(value.target)).detach()
