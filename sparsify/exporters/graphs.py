"""Reading and rewriting the graph of a file, as onnx_ir: values know who makes and who reads them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsify.timing import Array


def rewritten(model: ir.Model, *steps: Callable[[ir.Graph], bool]) -> ir.Model:
    """A copy of the file, which shares its weights, after steps that change a graph in place and say whether they did; the same file
    where none did.

    Nodes and constants that nothing reads any more are left out.
    """
    whole, changed = model.clone(), False
    for step in steps:
        if step(whole.graph):
            _drop_unread(whole.graph)
            changed = True
    return whole if changed else model


def drop_weights(*models: ir.Model) -> None:
    """Drop the weights of files that are needed no more.

    A graph holds itself in circles: its weights would be in memory until Python looks for those.
    """
    for model in models:
        for value in model.graph.initializers.values():
            value.const_value = None


def without_shapes(graph: ir.Graph) -> None:
    """Drop types and shapes of weights, which are not kept up to date where weights are rewritten. A weight that is an output stays as it
    is, and a file has to say what an output is."""
    for value in graph.initializers.values():
        if not value.is_graph_output():
            value.type, value.shape = None, None


def watched(model: ir.Model, names: Collection[str]) -> ir.Model:
    """A copy of the file that returns these tensors as well."""
    copy = model.clone()
    values = ir.convenience.create_value_mapping(copy.graph, include_subgraphs=False)
    copy.graph.outputs.extend(values[name] for name in dict.fromkeys(names) if not values[name].is_graph_output())
    return copy


def _drop_unread(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)


def constant(value: ir.Value | None) -> Array | None:
    """A constant of a file, looked up through nodes that only add dimensions of size 1."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Unsqueeze":
        inner, axes = constant(node.inputs[0]), constant(node.inputs[1])
        return None if inner is None or axes is None else np.expand_dims(inner, tuple(axes.tolist()))
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def only_reader(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value, or None where there are more, or it leaves the file."""
    readers = [use.node for use in value.uses()]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def reroute(old: ir.Value, new: ir.Value, users: Collection[ir.Node]) -> None:
    """Let some of the readers of a value read another."""
    for use in [use for use in old.uses() if use.node in users]:
        use.node.replace_input_with(use.idx, new)


def leaves(value: ir.Value) -> bool:
    """Whether a value is an output, or becomes one by changes of its shape only."""
    turned = [use.node for use in value.uses() if use.node.op_type in ("Transpose", "Reshape", "Squeeze")]
    return value.is_graph_output() or any(leaves(node.outputs[0]) for node in turned)


class Writer:
    """Adds nodes in front of one, and constants, each under a name of its own.

    Args:
        anchor: the node; it may be in a branch.
        graph: the main graph, which holds the constants.
    """

    def __init__(self, anchor: ir.Node, graph: ir.Graph) -> None:
        self.anchor, self.graph = anchor, graph

    def constant(self, name: str, value: Array | Sequence[int]) -> ir.Value:
        """An initializer; the one that has the name already, if there is one."""
        if name not in self.graph.initializers:
            tensor = ir.tensor(np.asarray(value), name=name)
            self.graph.register_initializer(ir.Value(name=name, const_value=tensor))
        return self.graph.initializers[name]

    def call(
        self, kind: str, inputs: Sequence[ir.Value], output: str, *, like: ir.Value | None = None, **attributes: Any
    ) -> ir.Value:
        """A node's only output; of the type of ``like``, where one is given."""
        made = ir.Value(name=output, type=None if like is None else like.type)
        node = ir.node(kind, inputs, attributes, outputs=[made], name=f"{output}_node")
        owner = self.anchor.graph
        assert owner is not None
        owner.insert_before(self.anchor, node)
        return made

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let every reader of a value read another, which gets its name, type and shape."""
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
