"""Checks of a trace: both phases behave like the model, at several sizes of every dimension that varies, gradients included."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsify.errors import TraceError
from sparsify.ir.dimensions import BATCH, Dimensions, Example
from sparsify.ir.effects import changed_in_place, place_of
from sparsify.ir.nodes import PHASES
from sparsify.ir.program import Program
from sparsify.ir.size_ranges import EVERY, SizeRange

RELATIVE_TOLERANCE = 1e-4
TRIALS = 4
"""How many of the smallest sizes are tried one by one: torch.export assumes that sizes computed from the batch are not 1."""
_Run = tuple[list[Tensor], list[Tensor | None]]


Ranges = dict[str, SizeRange]
LARGEST_TRIAL = 4096
"""The largest size at which an upper limit of the user is tried."""


@dataclass(frozen=True)
class Cause:
    """Why a range excludes sizes that the guards of torch.export allow.

    Attributes:
        text: what happened, and at which sizes.
        at_fault: whether the trace is to blame, because the model itself works at these sizes.
    """

    text: str
    at_fault: bool


Causes = dict[str, dict[str, Cause]]
"""By phase and dimension."""


def compare(
    model: nn.Module, program: Program, example: Example, dimensions: Dimensions, lost: str = ""
) -> tuple[dict[str, Ranges], Causes]:
    """Compare both phases with the model, at sizes that differ from the example's in every dimension that varies.

    Outputs and gradients of the train phase are compared at sizes one larger than the example's, outputs of the eval phase at twice the
    example's sizes, and outputs of both phases at the smallest sizes and at the limits that the user gave.

    Args:
        model: the traced model; its mode changes.
        program: the trace of the model.
        example: the arguments that the model was traced with.
        dimensions: the dimensions that vary.
        lost: which backward passes the trace has lost, and why, for messages.

    Returns:
        The sizes that each phase holds for: the ranges of the program, without sizes at which the model fails or the trace differs from
        it; and why these sizes were excluded.

    Raises:
        TraceError: If a phase differs from the model, or fails where the model does not.
    """
    found = {phase: dict(program.ranges[phase]) for phase in PHASES}
    causes: Causes = {phase: {} for phase in PHASES}
    for phase in PHASES:
        model.train(phase == "train")
        program.train(phase == "train")
        if not dimensions.names:
            _compare_at(model, program, phase, example, {}, lost)
            continue
        checks = _Checks(model, program, phase, example, dimensions)
        ranges = checks.capped(found[phase])
        wanted = {name: ranges[name].nearest(checks.second(name)) for name in dimensions.names}
        _compare_at(model, program, phase, dimensions.resized(example, wanted), wanted, lost)
        for name in dimensions.names:
            ranges[name] = checks.lowered(name, ranges[name])
        found[phase] = checks.cornered(ranges)
        checks.ends(found[phase])
        causes[phase] = checks.causes
    return found, causes


class _Checks:
    """Finds the sizes that one phase holds for."""

    def __init__(
        self, model: nn.Module, program: Program, phase: str, example: Example, dimensions: Dimensions
    ) -> None:
        self.model, self.program, self.phase = model, program, phase
        self.example, self.dimensions, self.sizes = example, dimensions, dimensions.sizes(example)
        self.causes = dict[str, Cause]()

    def second(self, name: str) -> int:
        """Choose a size that differs from the example's."""
        return self.sizes[name] + 1 if self.phase == "train" else 2 * self.sizes[name] + 1

    def capped(self, ranges: Ranges) -> Ranges:
        """Cut ranges at sizes where the model itself fails, for example after the end of a position table; the batch stays as it is."""
        found = dict(ranges)
        for name in self.dimensions.names:
            top = ranges[name].nearest(self.second(name))
            if name == BATCH or top <= self.sizes[name] or (cause := self._refused({name: top})) is None:
                continue
            low, high = self.sizes[name], top
            while high - low > 1:
                middle = (low + high) // 2
                refused = self._refused({name: middle})
                low, high, cause = (middle, high, cause) if refused is None else (low, middle, refused)
            found[name], self.causes[name] = replace(ranges[name], high=low), cause
        self.program.ranges[self.phase] = found
        return found

    def lowered(self, name: str, allowed: SizeRange) -> SizeRange:
        """Start the range at the smallest size that torch.export allows and at which model and program agree."""
        if allowed.low == 1:
            cause = self._differs({name: 1})
            if cause is None:
                return allowed
            self.causes[name] = cause
            return allowed.without_one()
        limit = self.dimensions.limits.get(name, EVERY).low
        for _ in range(TRIALS):
            size = allowed.low - allowed.step
            if size < limit or self._differs({name: size}) is not None:
                break
            allowed = replace(allowed, low=size)
        return allowed

    def cornered(self, ranges: Ranges) -> Ranges:
        """Raise the low ends of the ranges until model and program agree with all dimensions at their low ends at once."""
        if len(ranges) == 1:
            return ranges
        cause = self._differs({name: allowed.low for name, allowed in ranges.items()})
        if cause is None:
            return ranges
        found = {name: allowed if name == BATCH else allowed.without_one() for name, allowed in ranges.items()}
        second = self._differs({name: allowed.low for name, allowed in found.items()})
        if second is not None:
            narrowed = {n: replace(allowed, low=self.sizes[n]) for n, allowed in ranges.items() if n != BATCH}
            found, cause = {**ranges, **narrowed}, second
        self.causes |= {name: cause for name, allowed in found.items() if allowed != ranges[name]}
        return found

    def ends(self, ranges: Ranges) -> None:
        """Compare at the largest sizes that the user asked for."""
        for name in self.dimensions.limits:
            high = ranges[name].high
            if high is not None and high <= LARGEST_TRIAL and high in ranges[name]:
                sizes = {name: high} | ({BATCH: ranges[BATCH].nearest(2)} if BATCH in ranges and name != BATCH else {})
                _compare_at(self.model, self.program, self.phase, self.dimensions.resized(self.example, sizes), sizes)

    def _refused(self, sizes: Mapping[str, int]) -> Cause | None:
        """Return why the model itself fails at these sizes; None if it works."""
        found = self._eager(sizes)
        return found if isinstance(found, Cause) else None

    def _eager(self, sizes: Mapping[str, int]) -> list[Tensor] | Cause:
        try:
            resized = self.dimensions.resized(self.example, sizes)
            return _observe(self.model, self.model, resized, gradients=False)[0]
        except Exception as error:  # the user's code, which may raise anything at a size it does not support
            return Cause(f"the model itself fails at {_listed(sizes)} ({_told(error)})", at_fault=False)

    def _differs(self, sizes: Mapping[str, int]) -> Cause | None:
        """Return how the program differs from the model at these sizes; None if both give the same outputs."""
        eager = self._eager(sizes)
        if isinstance(eager, Cause):
            return eager
        known, self.program.ranges[self.phase] = self.program.ranges[self.phase], {}
        try:
            resized = self.dimensions.resized(self.example, sizes)
            traced = _observe(self.program, self.model, resized, gradients=False)[0]
        except Exception as error:  # an operator of the graph, which may raise anything
            return Cause(f"the model works at {_listed(sizes)}, and its trace fails ({_told(error)})", at_fault=True)
        finally:
            self.program.ranges[self.phase] = known
        same = len(eager) == len(traced) and all(
            w.shape == h.shape and _close(w, h) for w, h in zip(eager, traced, strict=True)
        )
        return None if same else Cause(f"the trace differs from the model at {_listed(sizes)}", at_fault=False)


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


def _told(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *(line.rstrip(".") for line in lines[:1])])


def _shown(example: Example, sizes: Mapping[str, int]) -> str:
    batch = sizes.get(BATCH, batch_of(example))
    return ", ".join([f"batch {batch}", *(f"{name} = {size}" for name, size in sizes.items() if name != BATCH)])


def _compare_at(
    model: nn.Module, program: Program, phase: str, example: Example, sizes: Mapping[str, int], lost: str = ""
) -> None:
    where, training = _shown(example, sizes), phase == "train"
    runs = list[_Run]()
    try:
        for callee in (model, program):
            runs.append(_observe(callee, model, example, gradients=training))
    except TraceError:
        raise
    except Exception as error:
        if training and "modified by an inplace operation" in str(error):
            raise TraceError(_untrainable(model, program, str(error))) from error
        raise TraceError(_failing(f"{where} in {phase} mode", error, worked=bool(runs), resized=bool(sizes))) from error
    (eager, eager_grads), (traced, traced_grads) = runs
    for index, (want, have) in enumerate(zip(eager, traced, strict=True)):
        if want.shape != have.shape or not _close(want, have):
            raise TraceError(
                f"output {index} of the {phase} phase differs from the model at {where}: shapes {list(have.shape)} and "
                f"{list(want.shape)}, largest difference {_difference(want, have)}. {_cause(model, example)}"
            )
    if training:
        _compare_gradients(model, eager_grads, traced_grads, lost)


def _failing(where: str, error: Exception, *, worked: bool, resized: bool) -> str:
    """Make the message for an error of the model or only of its trace, at the example's sizes or at others."""
    if worked:
        out = ", trace with an example of these sizes, or leave them out with limits" if resized else ""
        return (
            f"the trace of the model fails at {where}, where the model itself works: {_told(error)}. Look for a branch of forward that "
            f"only torch.export takes (torch.compiler.is_compiling()){out}."
        )
    if not resized:
        return f"the model fails at {where}, though torch.export could capture it: {_told(error)}. Mend forward there."
    return (
        f"the model fails at {where}, though not at the size it was traced with: {_told(error)}. Trace with an example of several "
        f"samples, or make forward independent of their number."
    )


def _untrainable(model: nn.Module, program: Program, text: str) -> str:
    """Name the in-place operations that may have overwritten what the backward pass needs.

    The error of torch gives the shape of the value and the operation that made it.
    """
    found = re.search(r"\[[\w.]+ \[([\d, ]*)\]\], which is output \d+ of (\w+)", text)
    sizes = found[1].split(", ") if found else []
    places: list[str] = []
    for node in changed_in_place(program, "train"):
        spec = node.meta.get("spec")
        shape = [str(size) for size in getattr(spec, "shape", ())]
        if not found or (
            len(shape) == len(sizes) and all(a == b or not a.isdigit() for a, b in zip(shape, sizes, strict=True))
        ):
            places.append(place_of(node))
    made = f", the output of {found[2]}" if found else ""
    return (
        f"{type(model).__name__} cannot be trained: backward needs a value{made}, that forward has changed in place "
        f"({', '.join(dict.fromkeys(places[:8])) or 'by an operation that is not in the trace'}). Make a new value there, as relu(x) and "
        f"x = x + y do, instead of relu_(x) and x += y."
    )


def _compare_gradients(
    model: nn.Module, eager: list[Tensor | None], traced: list[Tensor | None], lost_backwards: str
) -> None:
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    pairs = list(zip(names, eager, traced, strict=True))
    why = lost_backwards or "A backward pass of the model's own is lost by torch.export. "
    why += "Write it as torch.library.custom_op with register_autograd, or as hard + (soft - soft.detach())."
    lost = [name for name, want, have in pairs if (want is None) != (have is None)]
    if lost:
        raise TraceError(f"parameters {lost[:8]} receive a gradient in only one of the model and its trace. {why}")
    wrong = [name for name, want, have in pairs if want is not None and have is not None and not _close(want, have)]
    if wrong:
        raise TraceError(f"gradients of {wrong[:8]} differ between the model and its trace. {why}")


def _cause(model: nn.Module, example: Example) -> str:
    """Return the reason why a model differs from its trace, as far as it can be determined."""
    nested = [name for name, module in model.named_modules() if getattr(module, "use_nested_tensor", False)]
    if nested:
        return (
            f"{nested[0]!r} is a TransformerEncoder with enable_nested_tensor=True: in eval mode it takes a fast path that drops "
            f"padded positions. Build it with enable_nested_tensor=False."
        )
    first, second = (_observe(model, model, example, gradients=False)[0] for _ in range(2))
    if not all(w.shape == h.shape and _close(w, h) for w, h in zip(first, second, strict=True)):
        return (
            "The model gives other outputs when it is called again with the same inputs and seed, so it keeps state outside its "
            "buffers or draws random numbers that torch.manual_seed does not reach. Register the state as buffers."
        )
    return "The model depends on something the trace cannot see, such as a size or a number computed in Python."


def _observe(callee: Callable[..., Any], model: nn.Module, example: Example, *, gradients: bool) -> _Run:
    args, kwargs = example
    with torch.random.fork_rng(devices=[]), untouched(model), torch.set_grad_enabled(gradients):
        torch.manual_seed(0)
        leaves = [x for x in pytree.tree_leaves(callee(*args, **kwargs)) if isinstance(x, Tensor)]
        parameters = [p for p in model.parameters() if p.requires_grad]
        grads: list[Tensor | None] = []
        if gradients:
            outputs = [x for x in leaves if (x.is_floating_point() or x.is_complex()) and x.requires_grad]
            weights = [torch.linspace(-1, 1, x.numel(), device=x.device, dtype=x.dtype).view_as(x) for x in outputs]
            given = (
                torch.autograd.grad(outputs, parameters, weights, allow_unused=True)
                if outputs and parameters
                else [None] * len(parameters)
            )
            grads = list(given)
    return [x.detach() for x in leaves], grads


def _close(want: Tensor, have: Tensor) -> bool:
    if want.is_sparse or have.is_sparse:
        want, have = want.to_dense(), have.to_dense()
    if not (want.is_floating_point() or want.is_complex()):
        return torch.equal(want, have)
    tolerance = max(RELATIVE_TOLERANCE, 4 * torch.finfo(want.dtype).eps)
    finite = want.abs()[want.isfinite()]
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(want, have, rtol=0, atol=tolerance * scale + 1e-12, equal_nan=True)


def _difference(want: Tensor, have: Tensor) -> str:
    if want.shape != have.shape:
        return "undefined"
    kind = torch.complex128 if want.is_complex() else torch.float64
    return f"{float((want.to(kind) - have.to(kind)).abs().max()):.3g}"


@contextmanager
def untouched(model: nn.Module) -> Generator[None]:
    """Restore buffers and the RNG after the block: a forward in training mode updates batch-norm statistics and may replace buffers."""
    places: Mapping[tuple[int, str], Any] = {
        (id(module), leaf): (module, buffer, buffer.detach().clone())
        for module in model.modules()
        for leaf, buffer in module._buffers.items()
        if buffer is not None
    }
    rng = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(rng)
        with torch.no_grad():
            for (_, leaf), (module, buffer, value) in places.items():
                module._buffers[leaf] = buffer
                put_back(buffer, value)


def put_back(buffer: Tensor, value: Tensor) -> None:
    """Restore a buffer's value and shape from a copy; positions that share memory (`expand`) are written once."""
    if buffer.shape != value.shape:
        buffer.resize_(value.shape)
    if buffer.layout is torch.strided:
        stored = tuple(slice(1) if not stride else slice(None) for stride in buffer.stride())
        buffer, value = buffer[stored], value[stored]
    buffer.copy_(value)


def batch_of(example: Any) -> int:
    """Return the size of the first dimension of the first tensor that has dimensions.

    Raises:
        TraceError: If there is no such tensor.
    """
    sizes = [x.shape[0] for x in pytree.tree_leaves(example) if isinstance(x, Tensor) and x.ndim]
    if not sizes:
        raise TraceError(
            "the example inputs hold no tensor with a batch dimension. Give at least one tensor of shape [N, ...]."
        )
    return sizes[0]
