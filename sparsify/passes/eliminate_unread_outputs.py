"""``eliminate-unread-outputs``: a layer no longer makes the outputs for which every reader has only zeros."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from sparsify.deployment.packing import best_packing
from sparsify.ir import Program, Stage, TensorSpec, surgery
from sparsify.ir.feature_major import UNARY
from sparsify.parts.patterns.grouped import LANES
from sparsify.passes.base import DEPLOYED, Effect, Kept, Pass, PassLog

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
POOLS = (aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default)


@dataclass(frozen=True)
class EliminateUnreadOutputs(Pass):
    """Remove the outputs of a layer whose every reader has only zeros for them.

    Outputs are followed through elementwise operators, pooling and depthwise convolutions to the layers that read them, whose inputs go as
    well, so that nothing is left to run. Where something else reads the outputs, a residual addition say, all of them stay. Groups stay of
    equal size, for convolutions a multiple of 16.
    """

    name: ClassVar = "eliminate-unread-outputs"
    requires: ClassVar = (Stage.DEPLOYED,)
    effects: ClassVar = Effect.EVAL_GRAPH | Effect.WEIGHTS

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return DEPLOYED

    def run(self, program: Program) -> PassLog:
        log, reads = PassLog(self.name), reads_of(program)
        for node in reversed(
            list(program.phases["eval"].graph.nodes)
        ):  # readers first: what they drop, their inputs need not make
            if node.target not in (*CONVOLUTIONS, aten.linear.default):
                continue
            weight = own_parameter(program, node, 1, reads)
            if weight is None or groups_of(node) != 1 or not has_outputs(node, weight):
                continue
            flow = follow(program, node, weight, reads)
            _eliminate(program, node, weight, flow, log)
        if log.changed:
            surgery.erase_dead(program, "eval")
        return log


@dataclass
class Flow:
    """Where the outputs of a layer go.

    Attributes:
        values: what carries them, the layer first.
        depthwise: convolutions among these.
        readers: layers that read them at last.
        reason: why they have to stay as they are, if they have.
    """

    values: list[fx.Node] = field(default_factory=list)
    depthwise: list[fx.Node] = field(default_factory=list)
    readers: list[fx.Node] = field(default_factory=list)
    reason: str = ""


def reads_of(program: Program) -> dict[str, int]:
    """By name of a parameter, how many nodes of the eval phase read its tensor, under any of its names."""
    tensors = dict(program.named_parameters(remove_duplicate=False))
    counts: dict[int, int] = {}
    for node in program.phases["eval"].graph.nodes:
        if node.op == "get_attr" and str(node.target) in tensors:
            counts[id(tensors[str(node.target)])] = counts.get(id(tensors[str(node.target)]), 0) + len(node.users)
    return {name: counts.get(id(tensor), 0) for name, tensor in tensors.items()}


def own_parameter(program: Program, node: fx.Node, index: int, reads: dict[str, int]) -> Tensor | None:
    """The parameter that is an argument of ``node`` and is read by nothing else."""
    value = node.args[index] if len(node.args) > index else None
    if not isinstance(value, fx.Node) or value.op != "get_attr" or reads.get(str(value.target)) != 1:
        return None
    return program.get_parameter(str(value.target))


def groups_of(node: fx.Node) -> int:
    """The groups of a convolution; 1 for a linear layer."""
    if node.target is aten.linear.default:
        return 1
    return int(node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1))  # type: ignore[arg-type]


def has_outputs(node: fx.Node, weight: Tensor) -> bool:
    """Whether the value of a layer has its outputs where they are looked for."""
    spec = node.meta.get("spec")
    if not isinstance(spec, TensorSpec) or node.kwargs:
        return False
    if node.target is aten.linear.default:
        return len(spec.shape) > 1 and spec.shape[-1] == weight.shape[0]
    return len(spec.shape) == weight.ndim and spec.shape[1] == weight.shape[0]


def follow(program: Program, layer: fx.Node, weight: Tensor, reads: dict[str, int]) -> Flow:
    """Where the outputs of a layer go; ``reason`` says why they cannot be changed."""
    flow, pending, convolves = Flow(), [layer], weight.ndim > 2
    if _has_bias(layer) and own_parameter(program, layer, 2, reads) is None:
        flow.reason = "its bias has other readers"
    while pending:
        value = pending.pop()
        flow.values.append(value)
        for user in value.users:
            inside = user.args[0] is value and sum(a is value for a in user.all_input_nodes) == 1
            if inside and (user.target in UNARY or (convolves and user.target in POOLS)):
                pending.append(user)
            elif inside and user.target in (CONVOLUTIONS if convolves else (aten.linear.default,)):
                read = own_parameter(program, user, 1, reads)
                if read is None or not has_outputs(user, read):
                    flow.reason = f"%{user.name} shares its weight"
                elif groups_of(user) == 1:
                    flow.readers.append(user)
                elif groups_of(user) == weight.shape[0] == read.shape[0] and (
                    not _has_bias(user) or own_parameter(program, user, 2, reads) is not None
                ):
                    flow.depthwise.append(user)
                    pending.append(user)
                else:
                    flow.reason = f"%{user.name} reads them in groups"
            else:
                flow.reason = f"%{user.name} reads them"
    return flow


def _has_bias(node: fx.Node) -> bool:
    return len(node.args) > 2 and node.args[2] is not None


def _eliminate(program: Program, layer: fx.Node, weight: Tensor, flow: Flow, log: PassLog) -> None:
    name = str(layer.args[1].target)  # type: ignore[union-attr]
    readers = [program.get_parameter(str(reader.args[1].target)) for reader in flow.readers]  # type: ignore[union-attr]
    if flow.reason or not readers:
        log.skip(name, flow.reason or "nothing reads its outputs in the graph")
        return
    packings = [best_packing(reader)[0] for reader in readers]
    chunk = min((packing.chunk for packing in packings if packing), default=1)
    live = torch.stack([(reader.detach() != 0).movedim(1, 0).flatten(1).any(dim=1) for reader in readers]).any(dim=0)
    kept = _kept(weight.detach(), live, max(chunk, LANES if weight.ndim > 2 else 1))
    if len(kept) == len(weight):
        log.skip(name, "all its groups have outputs that are read")
        return
    count = f"{len(kept)} of {len(weight)} outputs"
    take_outputs(program, layer, flow.values, kept, flow.depthwise)
    for reader, values in zip(flow.readers, readers, strict=True):
        set_parameter(program, reader.args[1], values.detach()[:, kept])
    log.change(f"{name}: {count}")


def _kept(weight: Tensor, live: Tensor, step: int) -> Tensor:
    """Positions of outputs to keep: the live ones of each group, and as many dead ones as make groups equal and a multiple of ``step``."""
    packing, _ = best_packing(weight)
    rows = packing.rows if packing else len(weight)
    alive = live.reshape(-1, rows)
    count = min(-(-max(int(alive.sum(dim=1).max()), 1) // step) * step, rows)
    places = alive.int().sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
    return (places + torch.arange(len(alive))[:, None] * rows).flatten()


def take_outputs(
    program: Program, layer: fx.Node, values: list[fx.Node], index: Tensor, depthwise: list[fx.Node] | None = None
) -> None:
    """Let ``layer`` and the depthwise convolutions behind it make outputs ``index`` alone, in that order."""
    for node in (layer, *(depthwise or [])):
        for place in (1, 2) if _has_bias(node) else (1,):
            argument = node.args[place]
            set_parameter(program, argument, program.get_parameter(str(argument.target)).detach()[index])  # type: ignore[union-attr]
    for node in depthwise or []:
        surgery.replace_argument(node, 6, len(index))
    dimension = 1 if layer.target in CONVOLUTIONS else -1
    for node in values:
        spec = node.meta.get("spec")
        if isinstance(spec, TensorSpec):
            node.meta["spec"] = surgery.respec(node, dimension % len(spec.shape), len(index))


def set_parameter(program: Program, node: Any, values: Tensor) -> None:
    """Replace the parameter that a node reads."""
    surgery.replace_parameter(program, str(node.target), values)
    node.meta["spec"] = surgery.spec_of(values, node.name)
