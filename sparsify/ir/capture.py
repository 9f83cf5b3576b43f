"""One mode of a model through `torch.export`: the exported program, and the batch sizes that its guards allow."""

from __future__ import annotations

import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from sparsify.errors import TraceError
from sparsify.ir.agreement import Example, batch_of
from sparsify.ir.batches import BatchRange, range_of
from sparsify.ir.flattening import source_line
from sparsify.ir.roles import TraceWarning


@dataclass(frozen=True)
class Captured:
    """An exported mode of a model.

    Attributes:
        exported: by torch.export.
        dynamic: whether the batch may vary.
        batches: the sizes its guards allow.
        conditions: lines of the model that hold for these sizes only.
    """

    exported: ExportedProgram
    dynamic: bool
    batches: BatchRange
    conditions: tuple[str, ...] = ()


def capture(model: nn.Module, example: Example, phase: str, *, dynamic: bool = True) -> Captured:
    """Export ``model`` in the mode it is in.

    Args:
        model: in the mode of ``phase``.
        example: its arguments.
        phase: what messages call the mode.
        dynamic: let the batch vary where the model allows it; a `TraceWarning` says where it does not.

    Raises:
        TraceError: If it cannot be exported.
    """
    batch = batch_of(example)
    try:
        exported = _export(model, example, batch if dynamic else None)
    except Exception as error:
        if dynamic and _fixes_batch(error):
            captured = capture(model, example, phase, dynamic=False)
            _say_fixed(model, batch, first_line(error))
            return captured
        raise TraceError(_message(model, phase, error)) from error
    if not dynamic:
        return Captured(exported, False, BatchRange())
    batches = range_of(exported._guards_code, batch)
    if batches is None:
        _say_fixed(model, batch, f"its conditions on the batch size are {', '.join(exported._guards_code)}")
        return capture(model, example, phase, dynamic=False)
    return Captured(exported, True, batches, _conditions(exported))


def _export(model: nn.Module, example: Example, batch: int | None) -> ExportedProgram:
    args, kwargs = example
    flat, structure = pytree.tree_flatten(example)
    shapes = [{0: torch.export.Dim.DYNAMIC} if _carries(x, batch) else None for x in flat]
    dynamic_args, dynamic_kwargs = pytree.tree_unflatten(shapes, structure)
    with (
        warnings.catch_warnings(),
        redirect_stderr(io.StringIO()),  # it prints whole graphs
        quiet("torch.export", "torch._export", "torch._subclasses", "torch.fx"),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        return torch.export.export(
            model, args, kwargs, dynamic_shapes=_by_argument(model, dynamic_args, dynamic_kwargs), strict=False
        )


def _carries(value: Any, batch: int | None) -> bool:
    return batch is not None and isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch


def _by_argument(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Dynamic shapes by parameter name of ``forward``; those of ``*args`` and ``**kwargs`` as one tuple and one mapping."""
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _fixes_batch(error: Exception) -> bool:
    text = str(error)
    return "data-dependent" not in text and (
        "Constraints violated" in text or "specializ" in text.lower() or "marked" in text
    )


def _say_fixed(model: nn.Module, batch: int, reason: str) -> None:
    warnings.warn(
        f"{type(model).__name__} fixes its batch size at {batch} ({reason}); traced with that batch only.",
        TraceWarning,
        stacklevel=4,
    )


def _conditions(exported: ExportedProgram) -> tuple[str, ...]:
    """Lines of the model's own code that compare the batch size."""
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
    if "used in an in-place operation" in text:
        return "Forward changes a parameter in place, which cannot be trained: compute a new tensor from it, as weight * 2 does."
    return "Change that line so that torch.export.export(model, args, strict=False) succeeds, or trace a part of the model without it."


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300].rstrip(".") if lines else type(error).__name__


@contextmanager
def quiet(*names: str) -> Generator[None]:
    """Keep torch from logging what becomes the message of an error."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
