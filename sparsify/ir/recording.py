"""Operators recorded as nodes one by one: shapes and types of their results are found by running them on tensors without values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.errors import PassError
from sparsify.ir import surgery
from sparsify.ir.nodes import TensorSpec
from sparsify.ir.program import Program

TRIALS = ((1009, 8), (2003, 16))
"""Two runs: the first size that stands for a text such as ``N``, and the step to the next. A size that is the same in both is fixed."""


class Recorder:
    """Adds a node for each operator that it is called with, at the end of the eval phase.

    Args:
        program: to be changed in place.
        owner: who records, for messages.
    """

    def __init__(self, program: Program, owner: str) -> None:
        self.program, self.owner = program, owner
        self._values: dict[fx.Node, tuple[Any, Any]] = {}
        self._texts: list[str] = []

    def __call__(self, operator: Callable[..., Any], *arguments: Any) -> fx.Node:
        """The node of ``operator`` applied to nodes and constants.

        Raises:
            PassError: If it cannot be run on what it is given, or its result has a size that is neither fixed nor one of the arguments'.
        """
        found = self._run(operator, arguments, 0), self._run(operator, arguments, 1)
        spec = self._spec(operator, *found) if isinstance(found[0], Tensor) else None
        place = self.program.output_node("eval").prev
        node = surgery.call_after(self.program, "eval", place, operator, arguments, spec=spec)
        if spec is None:
            node.meta.pop("spec", None)
        self._values[node] = found
        return node

    def _run(self, operator: Callable[..., Any], arguments: tuple[Any, ...], trial: int) -> Any:
        given = fx.map_arg(arguments, lambda node: self._value(node)[trial])
        try:
            return operator(*given)
        except Exception as error:  # an operator may raise anything
            text = (str(error).splitlines() or [""])[0][:200]
            raise PassError(
                f"{self.owner} cannot record {operator}: {type(error).__name__}: {text}. Give it arguments that it takes, and results "
                f"whose shape does not depend on values."
            ) from error

    def _value(self, node: fx.Node) -> tuple[Any, Any]:
        if node not in self._values:
            spec: TensorSpec = node.meta["spec"]
            self._texts += [size for size in spec.shape if isinstance(size, str) and size not in self._texts]
            dtype = getattr(torch, spec.dtype)
            shapes = [[size if isinstance(size, int) else self._size(size, t) for size in spec.shape] for t in (0, 1)]
            first, second = (torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)
            self._values[node] = first, second
        return self._values[node]

    def _size(self, text: str, trial: int) -> int:
        start, step = TRIALS[trial]
        return start + step * self._texts.index(text)

    def _spec(self, operator: Callable[..., Any], first: Tensor, second: Any) -> TensorSpec:
        known = {(self._size(text, 0), self._size(text, 1)): text for text in self._texts}
        sizes: list[int | str] = []
        for pair in zip(first.shape, second.shape, strict=True):
            if pair[0] != pair[1] and pair not in known:
                raise PassError(
                    f"{self.owner} cannot record {operator}: its result has a size that changes with the inputs and is none of "
                    f"{', '.join(self._texts)}. Treat each sample by itself, and join no dimensions that vary."
                )
            sizes.append(pair[0] if pair[0] == pair[1] else known[pair])
        return TensorSpec("", tuple(sizes), str(first.dtype).removeprefix("torch."))
