"""Checks that a checkpoint fits the run that resumes from it, as a whole, before any of it is used."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import CheckpointError, SparsifyError

BUFFERS = {
    "SGD": frozenset({"momentum_buffer"}),
    "AdamW": frozenset({"step", "exp_avg", "exp_avg_sq"}),
}
"""State that each optimizer keeps per parameter."""
RATES = frozenset({"lr", "initial_lr"})
"""Options of an optimizer that a schedule changes; they are set again and not checked."""
ROW = ("step", "loss", "accuracy", "val_loss", "val_accuracy")
"""Entries of a history row that must be numbers if they exist."""
LARGEST_COUNT = 2**53


class _Damaged(ValueError):
    """An entry of the checkpoint does not fit; the message says which and why."""


def check_content(
    content: Mapping[str, Any],
    *,
    program: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    trainer: Mapping[str, Any],
    total: int,
) -> None:
    """Check what `sparsify.training.train` saved against the run that should resume from it.

    Args:
        content: content of the checkpoint, whose key was already checked.
        program: state dict of the program, including masks.
        parameters: the program's parameters by name; saved state is dense also where they are stored compact.
        optimizer: a fresh optimizer over the program's parameters.
        trainer: state dict of a fresh trainer.
        total: steps of the run.

    Raises:
        CheckpointError: If an entry is missing, has another type, shape or dtype, is not finite or is out of range; names the first one.
    """
    try:
        dense = {id(parameter): program[name].shape for name, parameter in parameters.items()}
        _check(content, program, dense, optimizer, trainer, total)
    except _Damaged as error:
        raise CheckpointError(
            f"its content does not fit this run: {error}. Delete it, or run again with --overwrite."
        ) from error


def _check(
    content: Mapping[str, Any],
    program: Mapping[str, Tensor],
    dense: Mapping[int, torch.Size],
    optimizer: torch.optim.Optimizer,
    trainer: Mapping[str, Any],
    total: int,
) -> None:
    shapes = {name: value.shape for name, value in program.items()}
    _like(_of(content, "program", dict), dict(program), "program", shapes)
    _finite(content["program"], "program")
    _optimizer(_of(content, "optimizer", dict), optimizer, dense)
    _like(_of(content, "trainer", dict), dict(trainer), "trainer", shapes)
    for name, steps in (
        ("scheduler", _of(content, "scheduler", int)),
        ("trainer.steps", content["trainer"]["steps"]),
    ):
        if not 0 <= steps <= total:
            raise _Damaged(f"{name} is {steps}, and the run has {total} steps")
    _like(_of(content, "rng", Tensor), torch.random.get_rng_state(), "rng", {})
    _count(_of(content, "waited", int), "waited")
    for name, value in _of(content, "grown", dict).items():
        _count(value, f"grown.{name}")
    sums = _of(content, "sums", list)
    if len(sums) != 2 or not all(_is_number(value) for value in sums):
        raise _Damaged(f"sums is {str(sums)[:80]}, not two finite numbers")
    best = _of(content, "best", dict)
    if best:
        _like(best, {"val_loss": 0.0, "program": dict(program)}, "best", shapes)
    for index, row in enumerate(_of(content, "history", list)):
        _row(row, f"history.{index}")


@contextmanager
def fitting(path: Path) -> Generator[None]:
    """Turn any error within the block into the message that the checkpoint at ``path`` does not fit the run.

    Raises:
        CheckpointError: If the block raises, whether in `check_content` or while loading.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"cannot resume from {path}: {error}") from error
    except (SparsifyError, ValueError, TypeError, LookupError, RuntimeError, AttributeError, ArithmeticError) as error:
        text = (str(error).splitlines() or [""])[0][:300]
        raise CheckpointError(
            f"cannot resume from {path}: its content does not fit this run ({type(error).__name__}: {text}). Delete it, or run again "
            f"with --overwrite."
        ) from error


def _of(content: Mapping[str, Any], name: str, kind: type) -> Any:
    value = content.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Damaged(f"{name} should be a {kind.__name__}, found {type(value).__name__}")
    return value


def _like(have: Any, want: Any, where: str, shapes: Mapping[str, torch.Size]) -> None:
    """Check that saved state has the form of fresh state; fresh state may hold None or an empty table where saved state is filled."""
    if isinstance(want, Tensor):
        if not isinstance(have, Tensor) or have.shape != want.shape or have.dtype != want.dtype:
            raise _Damaged(f"{where} should be {want.dtype} {list(want.shape)}, found {_shown(have)}")
    elif isinstance(want, dict) and want:
        if not isinstance(have, dict) or have.keys() != want.keys():
            raise _Damaged(
                f"{where} should hold {len(want)} entries, {', '.join(map(str, [*want][:4]))} ..., found {_shown(have)}"
            )
        for key, value in want.items():
            _like(have[key], value, f"{where}.{key}", shapes)
    elif isinstance(want, (list, tuple)) and want:
        if type(have) is not type(want) or len(have) != len(want):
            raise _Damaged(f"{where} should be a {type(want).__name__} of {len(want)}, found {_shown(have)}")
        for index, (one, other) in enumerate(zip(have, want, strict=True)):
            _like(one, other, f"{where}.{index}", shapes)
    elif isinstance(want, (bool, str)):
        if type(have) is not type(want):
            raise _Damaged(f"{where} should be {type(want).__name__}, found {_shown(have)}")
    elif isinstance(want, (int, float)):
        if not _is_number(have) or (
            isinstance(want, int) and (not isinstance(have, int) or not 0 <= have < LARGEST_COUNT)
        ):
            raise _Damaged(f"{where} should be a number like {want}, found {_shown(have)}")
    else:
        if want is not None and type(have) is not type(want):
            raise _Damaged(f"{where} should be {type(want).__name__}, found {_shown(have)}")
        _plain(have, where, shapes)


def _plain(value: Any, where: str, shapes: Mapping[str, torch.Size]) -> None:
    """Check state that a fresh run does not have yet: nested numbers and tensors; a tensor named like a weight must have its shape."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, Tensor) and key in shapes and inner.ndim and inner.shape != shapes[key]:
                raise _Damaged(f"{where}.{key} should have shape {list(shapes[key])}, found {list(inner.shape)}")
            _plain(inner, f"{where}.{key}", shapes)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _plain(inner, f"{where}.{index}", shapes)
    elif not (value is None or isinstance(value, (Tensor, bool, str)) or _is_number(value)):
        raise _Damaged(f"{where} holds {_shown(value)}")


def _optimizer(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, dense: Mapping[int, torch.Size]) -> None:
    fresh = optimizer.state_dict()
    groups = saved.get("param_groups")
    if not isinstance(groups, list) or len(groups) != len(fresh["param_groups"]):
        raise _Damaged(f"optimizer.param_groups should be {len(fresh['param_groups'])} groups, found {_shown(groups)}")
    for index, (group, own) in enumerate(zip(groups, fresh["param_groups"], strict=True)):
        if not isinstance(group, dict) or {*group} - RATES != {*own} - RATES:
            raise _Damaged(f"optimizer.param_groups.{index} has other options than this run's: {_shown(group)}")
        for key in {*own} - RATES:
            if type(group[key]) is not type(own[key]) or group[key] != own[key]:
                raise _Damaged(
                    f"optimizer.param_groups.{index}.{key} is {_shown(group[key])}, this run's {_shown(own[key])}"
                )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    wanted = [dense.get(id(parameter), parameter.shape) for parameter in parameters]
    kept = BUFFERS.get(type(optimizer).__name__)
    for index, state in _of(saved, "state", dict).items():
        where = f"optimizer.state.{index}"
        if not isinstance(index, int) or not 0 <= index < len(parameters) or not isinstance(state, dict):
            raise _Damaged(f"{where} is of no parameter")
        if kept is not None and {*state} != kept:
            raise _Damaged(f"{where} should hold {', '.join(sorted(kept))}, found {_shown(state)}")
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != wanted[index]:
                raise _Damaged(f"{where}.{name} should have shape {list(wanted[index])}, found {list(value.shape)}")
            if name == "step" and (not isinstance(value, Tensor) or value.ndim or not value.is_floating_point()):
                raise _Damaged(f"{where}.step should be a number in a tensor, found {_shown(value)}")
            if name != "step" and not (value is None or (isinstance(value, Tensor) and value.shape == wanted[index])):
                raise _Damaged(f"{where}.{name} should be a tensor like its parameter, found {_shown(value)}")
        _finite(state, where)


def _finite(tensors: Mapping[str, Any], where: str) -> None:
    for name, value in tensors.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            raise _Damaged(f"{where}.{name} holds NaN or infinity")


def _row(row: Any, where: str) -> None:
    if (
        not isinstance(row, dict)
        or not all(_is_number(row.get(key, 0.0)) for key in ROW)
        or not isinstance(row.get("step"), int)
    ):
        raise _Damaged(f"{where} is not a row of an epoch: {_shown(row)}")
    _plain(row, where, {})
    for name, value in row.items():
        if name not in ROW and not isinstance(value, (dict, float, int)) and value is not None:
            raise _Damaged(f"{where}.{name} is {_shown(value)}, neither a number nor a table")
    for key in ("loss", "val_loss"):
        if key not in row:
            raise _Damaged(f"{where} lacks {key}")


def _count(value: Any, where: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < LARGEST_COUNT:
        raise _Damaged(f"{where} should be a count, found {_shown(value)}")


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) < 2**1000
        and math.isfinite(value)
    )


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, (dict, list, tuple)) else repr(value)[:60]
