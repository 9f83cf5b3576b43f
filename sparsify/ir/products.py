"""Finds the operators that multiply matrices, and counts the multiply-accumulates of each per example."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from sparsify.ir.dimensions import BATCH, value_of
from sparsify.ir.nodes import TensorSpec, apply_random_mask, compact_view
from sparsify.ir.traits import PRODUCTS, argument, input_of, kind_of, operands, traits

if TYPE_CHECKING:
    from sparsify.ir.program import Program

LOOKUPS = ("embedding", "embedding-bag")
"""Kinds of products that look rows up by index and multiply nothing."""
MULTIPLIED = tuple(kind for kind in PRODUCTS if kind not in LOOKUPS)


def product_kind(user: fx.Node, value: fx.Node) -> str | None:
    """Return the kind of product in which a node reads a value as its weight, or None where it does not."""
    return kind_of(user) if any(value is operand for operand in operands(user)) else None


def is_product(node: fx.Node) -> bool:
    """Return whether a node multiplies matrices, and `Macs` knows how to count it."""
    return kind_of(node) in MULTIPLIED


def is_free(node: fx.Node) -> bool:
    """Return whether a node is known to multiply no matrices: pointwise, a view, a reduction, a lookup, or one of our own operators."""
    if node.op != "call_function":
        return node.op != "call_method"
    if kind_of(node) == "unknown" and not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__module__", "") in ("_operator", "math", "builtins", "torch")
    return kind_of(node) not in (*MULTIPLIED, "unknown")


_UNNAMED = re.compile(r"N\d*")
"""Matches a size that is only known when the graph runs."""


class Macs:
    """Multiply-accumulates per example of the nodes of a program, from the shapes the trace recorded.

    Dimensions that vary beside the batch have the size of the example.
    """

    def __init__(self, program: Program) -> None:
        sizes = (first.shape[0] for first in program.input_specs if first.shape)
        batch = next((size for size in sizes if isinstance(size, int)), 1)
        self._batch = 1 if program.dynamic_batch else batch
        self._sizes = {**program.sizes, BATCH: 1}

    def of(self, node: fx.Node) -> int | None:
        """Return the multiply-accumulates per example of a product; None if a shape is unknown."""
        try:
            return self._of(node)
        except _UnknownShape:
            return None

    def of_weight(self, node: fx.Node, value: fx.Node) -> int:
        """Return the share of a product's multiply-accumulates that one of its weights causes; 0 if a shape is unknown."""
        try:
            if kind_of(node) == "recurrent":
                return self._steps(node) * math.prod(map(self._size, _shape(value)))
        except _UnknownShape:
            return 0
        return (self.of(node) or 0) if is_product(node) else 0

    def _of(self, node: fx.Node) -> int:
        found, name = kind_of(node), traits(node).name
        if found == "recurrent":
            weights = [math.prod(map(self._size, _shape(w))) for w in _matrices(node)]
            return self._steps(node) * sum(weights)
        if found == "attention":
            query, key, value = (_shape(argument(node, name)) for name in ("query", "key", "value"))
            queries, keys = self._values(argument(node, "query")), self._size(key[-2])
            return queries * keys + queries // self._size(query[-1]) * keys * self._size(value[-1])
        if name == "einsum":
            return self._einsum(node)
        first = _shape(next(operands(node)))
        if found == "conv-transpose":  # each input value is multiplied by the kernels of all outputs of its group
            return self._values(argument(node, "input")) * math.prod(map(self._size, first[1:]))
        if found in ("conv", "bilinear"):
            return self._values(node) * math.prod(map(self._size, first[1:]))
        if name == "tensordot":
            return self._values(node) * math.prod(self._size(first[dim]) for dim in argument(node, "dims_self"))
        return self._values(node) * self._size(first[-1])

    def _einsum(self, node: fx.Node) -> int:
        """Count the product of all index sizes once per operand after the first, an upper bound for any order of products."""
        equation, given = argument(node, "equation"), argument(node, "tensors")
        sizes: dict[str, int | str] = {}
        for labels, operand in zip(equation.partition("->")[0].replace(" ", "").split(","), given, strict=True):
            shape, extra = _shape(operand), len(_shape(operand)) - len(labels.replace("...", ""))
            spelt = labels.replace("...", "".join(chr(0x2460 + i) for i in range(extra))) if "..." in labels else labels
            sizes |= {label: size for label, size in zip(spelt, shape, strict=True) if sizes.get(label, 1) == 1}
        return self._shared(math.prod(map(self._size, sizes.values()))) * max(len(given) - 1, 1)

    def _steps(self, node: fx.Node) -> int:
        """Return the time steps per example; each weight is used once per step of its direction."""
        source = input_of(node)
        return self._values(source) // max(self._size(_shape(source)[-1]), 1)

    def _values(self, node: Any) -> int:
        """Count values per example, wherever the batch dimension is: ``2*N`` in ``f32[8, 2*N, 16]`` counts 2."""
        return self._shared(math.prod(map(self._size, _shape(node))))

    def _shared(self, total: int) -> int:
        return max(total // self._batch, 1)

    def _size(self, size: int | str) -> int:
        """Return a size per example: the factor of the batch in ``"2*N"`` or ``"N"``."""
        value = value_of(size, self._sizes | ({size: 1} if isinstance(size, str) and _UNNAMED.fullmatch(size) else {}))
        if value is None:
            raise _UnknownShape
        return value


class _UnknownShape(Exception):
    """A shape was not recorded, or has a size that cannot be read."""


def _shape(node: Any) -> tuple[int | str, ...]:
    """Return the shape of a value; that of a weight that is stored compact is its dense one."""
    if isinstance(node, fx.Node) and node.target is compact_view:
        node = argument(node, "mask")
    elif isinstance(node, fx.Node) and node.target is apply_random_mask:
        node = argument(node, "visible")
    if isinstance(node, fx.Node):
        spec = node.meta.get("spec")
        if isinstance(spec, TensorSpec):
            return spec.shape
    raise _UnknownShape


def _matrices(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the matrices of a recurrent layer or cell, without its biases."""
    return (weight for weight in operands(node) if isinstance(weight, fx.Node) and len(_shape(weight)) > 1)
