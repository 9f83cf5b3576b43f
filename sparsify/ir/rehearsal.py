"""Runs the graphs of a program on tensors without values (shapes only), before anything runs on real tensors.

This finds arguments that do not fit their operators, and sizes that no memory can hold: a file of one kilobyte can ask for
``zeros([2**40])``, or reach such a size through a chain of harmless steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from sparsify.errors import LoadError
from sparsify.ir.document import MOST_VALUES
from sparsify.ir.nodes import MASK_OPERATORS, TensorSpec, apply_random_mask
from sparsify.untrusted import INTEGERS

BATCHES = (2, 24, 64)
"""Batch sizes, tried in turn: a model may need a multiple of its number of frames or segments."""
UNKNOWN = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
    GuardOnDataDependentSymNode,
)

if TYPE_CHECKING:
    from sparsify.ir.program import Program
"""Errors that torch raises if a shape depends on values; the rehearsal stops there."""


def rehearse(program: Program) -> None:
    """Run both phases on a few samples without values.

    Raises:
        LoadError: If a node cannot run on what it is given, or makes more than `MOST_VALUES` values.
    """
    for phase, module in program.phases.items():
        inputs = iter(program.input_specs)
        named = {node: next(inputs, None) for node in module.graph.nodes if node.op == "placeholder"}
        sizes = {name: size for name, size in program.sizes.items() if name != "N"}
        rehearse_graph(module.graph, f"of {phase}", named.__getitem__, program.tensor, sizes)


def rehearse_graph(
    graph: fx.Graph,
    where: str,
    given: Callable[[fx.Node], TensorSpec | Tensor | None],
    tensor: Callable[[str], Tensor],
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Run a graph on inputs without values.

    Args:
        graph: flat, of operators and the hooks of this package.
        where: what messages call the graph.
        given: returns what a placeholder stands for: a spec (varying sizes are taken from `BATCHES`), a tensor, or None if unknown.
        tensor: returns a parameter or buffer by name.
        sizes: sizes of dimensions other than the batch, by name.

    Raises:
        LoadError: If a node cannot run on what it is given, or makes more than `MOST_VALUES` values.
    """
    problems: list[LoadError] = []
    for node in graph.nodes:
        _check_kinds(node)
    with _quiet():
        for batch in BATCHES:
            try:
                return _Rehearsal(graph, where, given, tensor, batch, sizes or {}).run()
            except _DoesNotRun as problem:
                problems.append(problem)
    raise problems[0]


@contextmanager
def _quiet() -> Generator[None]:
    """Keep torch from logging tracebacks of errors that this module reports itself."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class _DoesNotRun(LoadError):
    """A node cannot run with one batch size; it may run with another."""


class _Rehearsal:
    """One run of one graph. If sizes other than the batch are made up, inputs may not fit together, and an error proves nothing."""

    def __init__(
        self,
        graph: fx.Graph,
        where: str,
        given: Callable[[fx.Node], TensorSpec | Tensor | None],
        tensor: Callable[[str], Tensor],
        batch: int,
        sizes: Mapping[str, int],
    ) -> None:
        self.graph, self.where, self.given, self.tensor = graph, where, given, tensor
        self.values: dict[fx.Node, Any] = {}
        self.batch, self.sizes = batch, sizes
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        specs = [given(node) for node in graph.nodes if node.op == "placeholder"]
        names = {size for spec in specs if isinstance(spec, TensorSpec) for size in spec.shape if isinstance(size, str)}
        self.uncertain = bool(names - {"N", *sizes}) or any(spec is None for spec in specs)

    def run(self) -> None:
        with self.mode, torch.no_grad():
            for node in self.graph.nodes:
                try:
                    value = self._value(node)
                except LoadError:
                    raise
                except UNKNOWN:
                    return
                except Exception as error:
                    if self.uncertain:
                        return
                    text = (str(error).splitlines() or [""])[0][:200]
                    raise _DoesNotRun(
                        f"%{node.name} {self.where} cannot run on what it is given ({type(error).__name__}: {text})."
                    ) from error
                self._check(node, value)
                self.values[node] = value

    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._input(self.given(node))
        if node.op == "get_attr":
            return self._input(self.tensor(str(node.target)))
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.values[n])
        if node.op == "call_module" or node.target in (*MASK_OPERATORS, apply_random_mask):
            return args[0]
        if node.op == "output" or "assert" in str(node.target):
            return None
        _check_numbers(node, args)
        operator: Callable[..., Any] = node.target  # type: ignore[assignment]
        return operator(*_on_cpu(args), **_on_cpu(kwargs))

    def _input(self, given: TensorSpec | Tensor | None) -> Tensor | None:
        if isinstance(given, Tensor):
            return self.mode.from_tensor(given.detach(), static_shapes=True)
        if given is None:
            return None
        return torch.empty(
            [size if isinstance(size, int) else self.sizes.get(size, self.batch) for size in given.shape],
            dtype=getattr(torch, given.dtype),
        )

    def _check(self, node: fx.Node, value: Any) -> None:
        for leaf in pytree.tree_leaves(value):
            count = leaf.numel() if isinstance(leaf, Tensor) else 0
            if count > MOST_VALUES * self.batch // BATCHES[0] or (isinstance(leaf, int) and leaf not in INTEGERS):
                raise LoadError(
                    f"%{node.name} {self.where} makes {'a number of more than 64 bits' if not count else f'{count:,} values'}; "
                    f"at most {MOST_VALUES:,} are allowed for {self.batch} samples."
                )
        spec = node.meta.get("spec")
        if isinstance(spec, TensorSpec) and not self.uncertain and not _agrees(spec, value):
            found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise LoadError(f"%{node.name} {self.where} is said to be {spec}, and is {found} for {self.batch} samples.")


def _agrees(spec: TensorSpec, value: Any) -> bool:
    """Return whether a value has the dtype, the number of dimensions and the fixed sizes of a spec."""
    return (
        isinstance(value, Tensor)
        and str(value.dtype).removeprefix("torch.") == spec.dtype
        and len(spec.shape) == value.ndim
        and all(said == found or isinstance(said, str) for said, found in zip(spec.shape, value.shape, strict=True))
    )


def _check_numbers(node: fx.Node, args: Sequence[Any]) -> None:
    """Refuse Python arithmetic that could take forever or fill the memory in one step: powers, and repeated lists or strings."""
    if (
        getattr(node.target, "__module__", "") not in ("_operator", "operator")
        or getattr(node.target, "__name__", "") == "getitem"
    ):
        return
    if not all(isinstance(a, (int, float, Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)) for a in args):
        raise LoadError(
            f"%{node.name} computes with {[type(a).__name__ for a in args]}, which are not all numbers or tensors."
        )
    if getattr(node.target, "__name__", "") == "pow" and all(isinstance(a, int) for a in args):
        base, exponent = args
        if abs(base) > 1 and abs(exponent) * abs(base).bit_length() > 64:
            raise LoadError(f"%{node.name} raises {base} to the power {exponent}, a number of more than 64 bits.")


_KINDS = {"ScalarType": torch.dtype, "Layout": torch.layout, "MemoryFormat": torch.memory_format}
"""Types for which torch also accepts whole numbers, which it then uses as unchecked indices into tables."""


def _check_kinds(node: fx.Node) -> None:
    """Refuse a number in place of a dtype, a layout or a memory format."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    names = [argument.name for argument in node.target._schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    for argument in node.target._schema.arguments:
        kind = _KINDS.get(str(argument.real_type).removeprefix("Optional[").removesuffix("]"))
        value = given.get(argument.name)
        if kind is not None and value is not None and not isinstance(value, kind):
            raise LoadError(
                f"%{node.name} calls {node.target} with {argument.name} {str(value)[:80]!r}, which is not a {kind.__name__}."
            )


def _on_cpu(value: Any) -> Any:
    """Replace every device in arguments by the CPU; sizes do not depend on the device."""
    return pytree.tree_map(lambda leaf: torch.device("cpu") if isinstance(leaf, torch.device) else leaf, value)
