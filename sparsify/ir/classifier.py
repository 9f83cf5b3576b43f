"""The classifier: the layer whose outputs become the logits, found from the output of a phase and not by a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sparsify.errors import PassError
from sparsify.ir import surgery
from sparsify.ir.axes import Axis, axis_after, shape_of
from sparsify.ir.layers import Layer, layer_of
from sparsify.ir.nodes import TensorSpec
from sparsify.ir.program import Program
from sparsify.ir.traits import ELEMENTWISE, has_argument, input_of, kind_of, named_outputs, traits

aten = torch.ops.aten


@dataclass(frozen=True)
class Classifier:
    """The layer that the logits come from.

    Attributes:
        layer: the node of the linear layer or convolution; its output is [N, .., K] or [N, K, ..].
        weight, bias: names of its parameters, [K, I, *kernel] and [K]; ``bias`` is None for a layer without one.
        tail: the nodes between the layer and the logits, in order; none of them mixes classes.
        logits: the node of the logits [N, K]; the layer itself if ``tail`` is empty.
    """

    layer: Layer
    weight: str
    bias: str | None
    tail: tuple[fx.Node, ...]
    logits: fx.Node


def classes(program: Program) -> int:
    """Return K, the number of classes, from the logits [N, K, ...] of the eval phase; an unknown class does not count."""
    return int(shape_of(_logits(program, "eval"))[1])


def _logits(program: Program, phase: str) -> fx.Node:
    found = named_outputs(program.output_node(phase))
    if "logits" not in found:
        raise PassError(
            f"{program.name!r} returns {', '.join(found)} in {phase} mode and no 'logits', so it has no classifier. Trace a "
            f"model that returns class scores."
        )
    return found["logits"]  # type: ignore[no-any-return]


def classifier(program: Program, phase: str) -> Classifier:
    """Find the classifier of a phase.

    Raises:
        PassError: If the logits are not [N, K], or a node between them and the layer mixes classes; the message names the node.
    """
    logits = _logits(program, phase)
    spec = logits.meta.get("spec")
    if not isinstance(spec, TensorSpec) or len(spec.shape) != 2 or not isinstance(spec.shape[1], int):
        raise PassError(
            f"a classifier returns logits [N, K]; {program.name!r} returns {spec}. Pool or select them in the model."
        )
    tail: list[fx.Node] = []
    node: Any = logits
    while (layer := layer_of(node) if isinstance(node, fx.Node) else None) is None:
        if not _may_keep_classes(node):
            raise PassError(_not_found(program, node, "which may mix the scores of classes"))
        tail.insert(0, node)
        node = input_of(node)
    dimension: int | None = layer.axis
    for step in tail:
        dimension = class_dimension(step, dimension)
        if dimension is None:
            raise PassError(_not_found(program, step, "which joins the scores of classes with other values"))
    if layer.groups != 1:
        raise PassError(_not_found(program, node, "a convolution in groups, whose classes read different features"))
    weight, bias = _parameter(program, layer.weight), _parameter(program, layer.bias)
    if weight is None or program.tensor(weight).shape[0] != spec.shape[1]:
        raise PassError(_not_found(program, node, "whose weight is not a parameter with one row per class"))
    if bias is None and layer.bias is not None:
        raise PassError(_not_found(program, node, "whose bias is computed, not a parameter"))
    return Classifier(layer, weight, bias, tuple(tail), logits)


def replayed(program: Program, phase: str, found: Classifier, value: fx.Node, width: int) -> fx.Node:
    """Apply the operators between the layer and the logits to another value; returns the node of the result, ``value`` if there are none.

    Args:
        program: its phase is edited; `surgery.finish` is left to the caller.
        phase: ``train`` or ``eval``.
        found: the classifier of that phase.
        value: a node whose value has the shape of the layer's output, but ``width`` entries in place of the K classes.
        width: its size where the classes are.
    """
    anchor, dimension = found.logits, found.layer.axis
    for node in found.tail:
        turned = class_dimension(node, dimension)
        assert turned is not None
        spec = surgery.respec(node, turned, width)
        if kind_of(node) == "reshape" and not has_argument(node, "dim") and len(shape_of(node)) == 2:
            value = surgery.call_after(program, phase, anchor, aten.flatten.using_ints, (value, 1), spec=spec)
        else:
            value = surgery.call_like(program, phase, anchor, node, {input_of(node): value}, spec=spec)
            if kind_of(node) == "reshape":
                surgery.resize(value, turned, width)
        anchor, dimension = value, turned
    return value


def class_dimension(node: fx.Node, dimension: int) -> int | None:
    """Return the dimension of the classes after ``node``, given the one before it; None if they no longer have one of their own."""
    if kind_of(node) == "combination":
        return dimension
    if traits(node).name == "squeeze" and not has_argument(node, "dim") and len(shape_of(node)) != 2:
        return None  # squeezing would also remove the class dimension of a single class
    after = axis_after(node, Axis(dimension))
    return after.dimension if after is not None and after.run == 1 else None


def _may_keep_classes(node: Any) -> bool:
    """Return whether a node is an operator of one value that may keep classes apart; `class_dimension` then finds their dimension."""
    if (
        not isinstance(node, fx.Node)
        or node.op != "call_function"
        or not shape_of(node)
        or not shape_of(input_of(node))
    ):
        return False
    if kind_of(node) == "combination":  # with a number or a scalar tensor
        return all(value is input_of(node) or not shape_of(value) for value in node.all_input_nodes)
    moves = (*ELEMENTWISE, "steps", "pool", "reduction", "reshape", "turn")
    return kind_of(node) in moves or traits(node).name in ("select", "slice")


def _parameter(program: Program, value: Any) -> str | None:
    """Return the name of the parameter that is an argument of a layer, looking through masks, taps and nodes that keep its shape."""
    parameters = dict(program.named_parameters(remove_duplicate=False))
    while isinstance(value, fx.Node) and value.op != "get_attr":
        source = input_of(value)
        if not isinstance(source, fx.Node) or shape_of(source) != shape_of(value):
            return None
        value = source
    return str(value.target) if isinstance(value, fx.Node) and value.target in parameters else None


def _not_found(program: Program, node: Any, reason: str) -> str:
    where = f"%{node.name} ({node.target})" if isinstance(node, fx.Node) else repr(node)
    return (
        f"the classifier of {program.name!r} cannot be found: its logits come from {where}, {reason}. They should come from one linear "
        f"layer or convolution, followed only by activations, pooling and reshapes; return them before any softmax."
    )
