"""The classifier: the layer whose outputs become the logits, found from the output of a phase and not by a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sparsify.errors import PassError
from sparsify.ir.nodes import TensorSpec
from sparsify.ir.program import Program

aten = torch.ops.aten

LINEAR = (aten.linear.default,)
CONVOLUTIONS = (
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
    aten.conv3d.padding,
)  # fmt: skip
ELEMENTWISE = (
    aten.relu.default, aten.relu_.default, aten.gelu.default, aten.silu.default, aten.silu_.default, aten.tanh.default,
    aten.sigmoid.default, aten.hardtanh.default, aten.leaky_relu.default, aten.elu.default, aten.dropout.default, aten.clone.default,
    aten.contiguous.default, aten.alias.default, aten.to.dtype, aten.neg.default,
)  # fmt: skip
SCALED = (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor)
POOLS = (
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten.avg_pool1d.default,
    aten.avg_pool2d.default, aten.avg_pool3d.default, aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default,
)  # fmt: skip
REDUCTIONS = (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default)
RESHAPES = (aten.reshape.default, aten.view.default, aten.flatten.using_ints)


@dataclass(frozen=True)
class Classifier:
    """The layer the logits come from.

    Attributes:
        node: the linear layer or convolution; outputs [N, .., K] or [N, K, ..].
        weight, bias: names of its parameters, [K, I, *kernel] and [K]; a layer may have no bias.
        tail: what lies between it and the logits, in order; every node keeps the classes apart.
        logits: [N, K]; ``node`` itself where the tail is empty.
    """

    node: fx.Node
    weight: str
    bias: str | None
    tail: tuple[fx.Node, ...]
    logits: fx.Node


def classes(program: Program) -> int:
    """K of the logits [N, K, ...] of the eval phase, which have no unknown class."""
    return int(_logits(program, "eval").meta["spec"].shape[1])


def _logits(program: Program, phase: str) -> Any:
    names = program.output_names(phase)
    if "logits" not in names:
        raise PassError(
            f"{program.name!r} returns {', '.join(names)} in {phase} mode and no 'logits', so that it has no classifier. Trace a "
            f"model that returns class scores."
        )
    return program.output_node(phase).args[0][names.index("logits")]  # type: ignore[index]


def classifier(program: Program, phase: str) -> Classifier:
    """Find the classifier of a phase.

    Raises:
        PassError: If the logits are not [N, K], or something on the way to a layer mixes classes; naming the node.
    """
    logits = _logits(program, phase)
    spec = logits.meta.get("spec")
    if not isinstance(spec, TensorSpec) or len(spec.shape) != 2 or not isinstance(spec.shape[1], int):
        raise PassError(
            f"a classifier returns logits [N, K]; {program.name!r} returns {spec}. Pool or select them in the model."
        )
    tail: list[fx.Node] = []
    node: Any = logits
    while not (isinstance(node, fx.Node) and node.target in (*LINEAR, *CONVOLUTIONS)):
        if not _keeps_places(node):
            raise PassError(_not_found(program, node, "which may mix the scores of classes"))
        tail.insert(0, node)
        node = node.args[0]
    dimension: int | None = 1 if node.target in CONVOLUTIONS else len(node.meta["spec"].shape) - 1
    for step in tail:
        dimension = class_dimension(step, dimension)
        if dimension is None:
            raise PassError(_not_found(program, step, "which joins the scores of classes with other values"))
    if node.target in CONVOLUTIONS and len(node.args) > 6 and node.args[6] != 1:
        raise PassError(_not_found(program, node, "a convolution in groups"))
    weight, bias = _parameter(program, node, 1), _parameter(program, node, 2)
    if weight is None or program.tensor(weight).shape[0] != spec.shape[1]:
        raise PassError(_not_found(program, node, "whose weight is not a parameter with one row a class"))
    if bias is None and len(node.args) > 2 and node.args[2] is not None:
        raise PassError(_not_found(program, node, "whose bias is computed, not a parameter"))
    return Classifier(node, weight, bias, tuple(tail), logits)


def class_dimension(node: fx.Node, dimension: int) -> int | None:
    """Where the classes are after ``node``, if they were at ``dimension`` before; None where they are no dimension of their own."""
    before: tuple[int | str, ...] = node.args[0].meta["spec"].shape  # type: ignore[union-attr]
    rank, target = len(before), node.target
    if target in POOLS:
        return dimension if dimension == 1 else None
    if target in REDUCTIONS:
        given = node.args[1] if len(node.args) > 1 else []
        reduced = {int(d) % rank for d in (given if isinstance(given, (list, tuple)) else [given])} or set(range(rank))  # type: ignore[arg-type]
        kept = len(node.args) > 2 and bool(node.args[2])
        return None if dimension in reduced else dimension - (0 if kept else sum(d < dimension for d in reduced))
    if target in RESHAPES:  # [N, K, 1, 1] or [N, 1, K] as [N, K]: nothing but the classes may be left beside the batch
        after = node.meta["spec"].shape
        return (
            1
            if len(after) == 2 and all(size == 1 for i, size in enumerate(before) if i not in (0, dimension))
            else None
        )
    if target in (aten.squeeze.dim, aten.squeeze.dims, aten.select.int):
        given = node.args[1]
        removed = {int(d) % rank for d in (given if isinstance(given, (list, tuple)) else [given])}  # type: ignore[arg-type]
        removed = removed if target is aten.select.int else {d for d in removed if before[d] == 1}
        return None if dimension in removed else dimension - sum(d < dimension for d in removed)
    if target is aten.slice.Tensor:
        cut = int(node.args[1]) % rank if len(node.args) > 1 else 0  # type: ignore[arg-type]
        return None if cut == dimension else dimension
    if target is aten.permute.default:
        return [int(d) % rank for d in node.args[1]].index(dimension)  # type: ignore[union-attr, arg-type]
    if target is aten.transpose.int:
        a, b = (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]
        return {a: b, b: a}.get(dimension, dimension)
    return dimension


def _keeps_places(node: Any) -> bool:
    """Whether a node is an operator of one value that may keep classes apart; `class_dimension` says where they are then."""
    if (
        not isinstance(node, fx.Node)
        or node.op != "call_function"
        or not node.args
        or not isinstance(node.args[0], fx.Node)
    ):
        return False
    if _shape(node) is None or _shape(node.args[0]) is None:
        return False
    if node.target in SCALED:
        other = node.args[1]
        return not isinstance(other, fx.Node) or _shape(other) == ()
    moves = (
        aten.squeeze.dim, aten.squeeze.dims, aten.select.int, aten.slice.Tensor, aten.permute.default, aten.transpose.int,
    )  # fmt: skip
    return node.target in (*ELEMENTWISE, *POOLS, *REDUCTIONS, *RESHAPES, *moves)


def _parameter(program: Program, node: fx.Node, index: int) -> str | None:
    """The name of the parameter that is an argument of a layer, looked up through masks, taps and whatever else keeps its shape."""
    value = node.args[index] if len(node.args) > index else None
    parameters = dict(program.named_parameters(remove_duplicate=False))
    while isinstance(value, fx.Node) and value.op != "get_attr":
        source = value.args[0] if value.args else None
        if not isinstance(source, fx.Node) or _shape(source) != _shape(value):
            return None
        value = source
    return str(value.target) if isinstance(value, fx.Node) and value.target in parameters else None


def _shape(node: fx.Node) -> tuple[int | str, ...] | None:
    spec = node.meta.get("spec")
    return spec.shape if isinstance(spec, TensorSpec) else None


def _not_found(program: Program, node: Any, reason: str) -> str:
    where = f"%{node.name} ({node.target})" if isinstance(node, fx.Node) else repr(node)
    return (
        f"the classifier of {program.name!r} cannot be found: its logits come from {where}, {reason}. They should come from one linear "
        f"layer or convolution, with nothing behind it but activations, pooling and reshapes; return them before any softmax."
    )
