"""Exports one mode of a model with `torch.export`, and reads off its guards which input sizes the export allows."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import re
import traceback
import warnings
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from sparsify.errors import TraceError
from sparsify.ir.dimensions import BATCH, Dimensions, Example, joined
from sparsify.ir.flattening import source_line
from sparsify.ir.recurrent_shapes import of_any_length
from sparsify.ir.roles import TraceWarning
from sparsify.ir.size_ranges import SizeRange, UnreadableGuard, keys_of, ranges_of

_MARKED = re.compile(r"marked L((?:\[[^\[\]]*\])+)\.size\(\)\[(\d+)\]")


@dataclass(frozen=True)
class Captured:
    """An exported mode of a model.

    Attributes:
        exported: the result of torch.export.
        dimensions: the dimensions that vary.
        ranges: the sizes that its guards allow, by dimension.
        conditions: lines of the model's code that compare sizes, and so limit these ranges.
    """

    exported: ExportedProgram
    dimensions: Dimensions
    ranges: dict[str, SizeRange]
    conditions: tuple[str, ...] = ()


def capture(model: nn.Module, example: Example, phase: str, dimensions: Dimensions) -> Captured:
    """Export ``model`` in its current mode.

    Args:
        model: in the mode of ``phase``.
        example: its example arguments.
        phase: the name of the mode in messages.
        dimensions: the dimensions that should vary. If the model fixes its batch size, so does the export, with a `TraceWarning`.

    Raises:
        TraceError: If the model cannot be exported, or fixes another dimension.
    """
    sizes = dimensions.sizes(example)
    try:
        exported = _export(model, example, dimensions)
    except Exception as error:
        if not dimensions.names or not _fixes_size(error):
            raise TraceError(_message(model, phase, error)) from error
        fixed = _fixed_dimensions(str(error), dimensions)
        return _without(model, example, phase, dimensions, fixed, first_line(error), error)
    if not dimensions.names:
        return Captured(exported, dimensions, {})
    try:
        ranges = ranges_of(exported._guards_code, sizes, functools.partial(_named, dimensions), dimensions.limits)
    except UnreadableGuard as guard:
        return _without(model, example, phase, dimensions, {guard.name or BATCH}, guard.reason, guard)
    return Captured(exported, dimensions, ranges, _conditions(exported))


def _without(
    model: nn.Module,
    example: Example,
    phase: str,
    dimensions: Dimensions,
    fixed: Collection[str],
    reason: str,
    error: Exception,
) -> Captured:
    """Export the model again with its batch size fixed.

    Raises:
        TraceError: If the model fixes a dimension that the user declared.
    """
    sizes = dimensions.sizes(example)
    declared = [name for name in dimensions.names if name != BATCH and (name in fixed or BATCH not in dimensions.names)]
    if declared:
        advice = error.advice if isinstance(error, UnreadableGuard) else ""
        advice = advice or (
            "Take it out of dynamic, or make forward compute with the sizes of its inputs (x.shape[1]) in place of numbers."
        )
        raise TraceError(
            f"{type(model).__name__} fixes dimension {declared[0]} at {sizes[declared[0]]} in {phase} mode: {reason}. {advice}"
        ) from error
    captured = capture(model, example, phase, dimensions.without(BATCH))
    warnings.warn(
        f"{type(model).__name__} fixes its batch size at {sizes[BATCH]} ({reason}); traced with that batch only.",
        TraceWarning,
        stacklevel=5,
    )
    return captured


def _fixed_dimensions(text: str, dimensions: Dimensions) -> set[str]:
    """Return the dimensions that an error of torch.export names as fixed; the batch if it names none."""
    found = {_named(dimensions, keys_of(path), int(at)) for path, at in _MARKED.findall(text)} - {None}
    return {name for name in found if name} or {BATCH}


def _named(dimensions: Dimensions, path: tuple[str, ...], at: int) -> str | None:
    return dimensions.places.get(joined(path), {}).get(at)


def _export(model: nn.Module, example: Example, dimensions: Dimensions) -> ExportedProgram:
    args, kwargs = example
    structure = pytree.tree_structure(example)
    shapes = [dict.fromkeys(places, torch.export.Dim.DYNAMIC) or None for places in dimensions.of_each(example)]
    dynamic_args, dynamic_kwargs = pytree.tree_unflatten(shapes, structure)
    with (
        warnings.catch_warnings(),
        redirect_stderr(io.StringIO()),  # it prints whole graphs
        quiet("torch.export", "torch._export", "torch._subclasses", "torch.fx"),
        torch.enable_grad(),
        of_any_length() if {*dimensions.names} - {BATCH} else contextlib.nullcontext(),
        _each_named(model, kwargs),
    ):
        warnings.simplefilter("ignore")
        return torch.export.export(
            model, args, kwargs, dynamic_shapes=_by_argument(model, dynamic_args, dynamic_kwargs), strict=False
        )


@contextmanager
def _each_named(model: nn.Module, kwargs: Mapping[str, Any]) -> Generator[None]:
    """Give ``forward`` a parameter per argument that its ``**kwargs`` takes; else torch.export fails if their sizes vary."""
    signature, forward = inspect.signature(model.forward), model.forward
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    rest = [name for name in kwargs if name not in {p.name for p in named}]
    if not rest:
        yield
        return

    def spelt_out(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    parameters = [*named, *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in rest)]
    spelt_out.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    own = {key: value for key, value in vars(model).items() if key == "forward"}
    vars(model)["forward"] = spelt_out
    try:
        yield
    finally:
        del vars(model)["forward"]
        vars(model).update(own)


def _by_argument(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return dynamic shapes by parameter name of ``forward``; ``*args`` have one tuple and ``**kwargs`` one mapping."""
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _fixes_size(error: Exception) -> bool:
    text = str(error)
    return "data-dependent" not in text and (
        "Constraints violated" in text or "specializ" in text.lower() or "marked" in text
    )


def _conditions(exported: ExportedProgram) -> tuple[str, ...]:
    """Find the lines of the model's own code that compare sizes."""
    sizes = (node.meta["val"].shape for node in exported.graph.nodes if isinstance(node.meta.get("val"), Tensor))
    symbolic = next((size for shape in sizes for size in shape if isinstance(size, torch.SymInt)), None)
    if symbolic is None:
        return ()
    places = [guard.sloc.framework_loc for guard in symbolic.node.shape_env.guards]
    own = [p for p in places if p is not None and "/torch/" not in getattr(p, "filename", "/torch/")]
    return tuple(dict.fromkeys(f"{p.filename.rsplit('/', 1)[-1]}:{p.lineno} in {p.name}" for p in own))


def _message(model: nn.Module, phase: str, error: Exception) -> str:
    text = str(error)
    head = f"torch.export cannot capture {type(model).__name__} in {phase} mode{source_line(text)}"
    averages = [
        name
        for name, m in model.named_modules()
        if isinstance(m, _NormBase) and m.track_running_stats and m.momentum is None
    ]
    if averages and phase == "train" and "batchnorm.py" in text + "".join(traceback.format_tb(error.__traceback__)):
        return (
            f"{head}: {averages[0] or type(model).__name__!r} has momentum=None, a mean over all batches so far, whose weight is read "
            f"from a counter tensor on every step. Give it a number, such as momentum=0.1."
        )
    return f"{head}: {first_line(error)}. {_advice(text)}"


def _advice(text: str) -> str:
    if "scaled_dot_product" in text or "sdpa" in text:
        return "Load the model with set_attn_implementation('eager') before tracing."
    if "nference tensor" in text or "inference_mode" in text:
        return "Use torch.no_grad instead of torch.inference_mode inside forward."
    if "data-dependent" in text or "GuardOnDataDependent" in text:
        return "Replace control flow that depends on tensor values by torch.where, or trace a part of the model without it."
    if "fake tensor in the exported program" in text:
        return (
            "Forward reads a tensor that an earlier call left outside of the model, as the states of other networks are for snntorch's "
            "utils.reset. Start forward with a fresh state, or pass it as an argument."
        )
    if "used in an in-place operation" in text:
        return "Forward changes a parameter in place, which cannot be trained: compute a new tensor from it, as weight * 2 does."
    return "Change that line so that torch.export.export(model, args, strict=False) succeeds, or trace a part of the model without it."


def first_line(error: BaseException) -> str:
    """Return the first meaningful line of an error's message, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300].rstrip(".") if lines else type(error).__name__


@contextmanager
def quiet(*names: str) -> Generator[None]:
    """Keep torch from logging errors that this package reports itself."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
