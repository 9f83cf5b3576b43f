"""Names a model's outputs, and finds the one that the task reads: chosen by the user, by its key, or because no other fits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from sparsify.errors import SparsifyWarning, TraceError
from sparsify.ir.nodes import TensorSpec
from sparsify.tasks import Task

LOGITS = "logits"


class TraceWarning(SparsifyWarning):
    """The trace is correct, but has a limit that the user should know."""


def output_names(
    leaves: Sequence[Any],
    spec: pytree.TreeSpec,
    phase: str,
    *,
    chosen: Mapping[str, int | str],
    classes: int | None = None,
    task: type[Task] | None = None,
) -> tuple[str, ...]:
    """Name the flat outputs of a phase.

    The output that the task reads (``logits``, or ``prediction``) is, in this order: the one chosen for it, one with that key, the only
    floating-point output of a shape that the task takes, the only one of these with ``classes`` columns. Without a task it is
    called ``logits``: the only floating-point output [N, K], or the only one with a batch at all.

    Args:
        leaves: nodes and constants that the phase returns.
        spec: the structure in which it returns them.
        phase: ``train`` or ``eval``.
        chosen: position (from 0) or key of an output, by the name that it should get.
        classes: K, the number of classes, if the data determine it.
        task: what the outputs mean; a task that reads all outputs selects none.

    Returns:
        One name per output: the chosen names, the name that the task reads, and for other outputs their key or ``output_<position>``.

    Raises:
        TraceError: If a chosen output does not exist, or several outputs could be the one the task reads.
    """
    paths = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(len(leaves))), spec))[0]
    keys = [_key_text(path) for path, _ in paths]
    first = {id(leaf): i for i, leaf in reversed(list(enumerate(leaves)))}  # one value returned twice is one candidate
    specs = [
        leaf.meta.get("spec") if isinstance(leaf, fx.Node) and first[id(leaf)] == i else None
        for i, leaf in enumerate(leaves)
    ]
    roles = {name: _place(wanted, keys, specs, phase, name) for name, wanted in chosen.items()}
    if len(set(roles.values())) < len(roles):
        raise TraceError(f"outputs={dict(chosen)} gives one output two names. Give each name another output.")
    reads = LOGITS if task is None else task.output
    if reads is not None and reads not in roles:
        roles[reads] = _read(keys, specs, phase, classes, task, taken=set(roles.values()))
    by_place = {place: name for name, place in roles.items()}
    names: list[str] = []
    for i, key in enumerate(keys):
        plain = key if key and key not in roles and not key.isdigit() else f"output_{i}"
        label = by_place.get(i, plain)
        names.append(label if label not in names else f"{label}_{i}")
    return tuple(names)


def _place(wanted: int | str, keys: Sequence[str], specs: Sequence[TensorSpec | None], phase: str, name: str) -> int:
    """Return the position of an output given by position or key."""
    if isinstance(wanted, str) and wanted in keys:
        return keys.index(wanted)
    if isinstance(wanted, str) and wanted.isdigit():
        wanted = int(wanted)
    if isinstance(wanted, int) and 0 <= wanted < len(keys):
        return wanted
    raise TraceError(
        f"outputs={{{name!r}: {wanted!r}}} names no output of the model in {phase} mode; it returns {_listed(keys, specs)}. "
        f"Give a position or a key of these."
    )


def _read(
    keys: Sequence[str],
    specs: Sequence[TensorSpec | None],
    phase: str,
    classes: int | None,
    task: type[Task] | None,
    *,
    taken: set[int],
) -> int:
    """Return the position of the output that the task reads."""
    reads = LOGITS if task is None or task.output is None else task.output
    if reads in keys and keys.index(reads) not in taken:
        return keys.index(reads)
    floats = [
        i
        for i, spec in enumerate(specs)
        if spec is not None and "float" in spec.dtype and spec.shape and i not in taken
    ]
    scalars = [i for i, spec in enumerate(specs) if spec is not None and "float" in spec.dtype and not spec.shape]
    rows = [i for i in floats if len(specs[i].shape) == 2]  # type: ignore[union-attr]
    told = "the logits" if reads == LOGITS else f"the {reads}"
    if task is None:
        tiers = (rows, floats, scalars)
    else:
        tiers = ([i for i in floats if task.takes(specs[i].shape)],)  # type: ignore[union-attr]
    for candidates in tiers:
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            continue
        fitting = [i for i in candidates if classes is not None and specs[i].shape[1:] == (classes,)]  # type: ignore[union-attr]
        if len(fitting) == 1:
            warnings.warn(
                f"the model returns {_listed(keys, specs)} in {phase} mode; output {keys[fitting[0]] or fitting[0]} is taken as "
                f"{told}, the only one with {classes} columns.",
                TraceWarning,
                stacklevel=5,
            )
            return fitting[0]
        example = keys[candidates[-1]] or "0"
        raise TraceError(
            f"the model returns {_listed(keys, specs)} in {phase} mode, and more than one could be {told}. Say which, by "
            f"position or key: sparsify.trace(model, args, outputs={{{reads!r}: {int(example) if example.isdigit() else example!r}}}), "
            f"or --set model.logits={example} for sparsify run and --logits {example} for sparsify trace."
        )
    if task is not None and floats:
        raise TraceError(
            f"the model returns {_listed(keys, specs)} in {phase} mode, and task {task.name!r} takes {task.targets}: no output has such a "
            f"shape. Change the model, or name another task: task=... in Python, --task for the command."
        )
    missing, wanted = (
        ("are not logits", "class scores") if reads == LOGITS else (f"is not a {reads}", "predicted numbers")
    )
    raise TraceError(
        f"the model returns no floating-point tensor in {phase} mode ({_listed(keys, specs)}), so there {missing}. Return the {wanted}."
    )


def _listed(keys: Sequence[str], specs: Sequence[TensorSpec | None]) -> str:
    """Return the outputs with their keys and shapes."""
    return ", ".join(
        f"{key or i}: {spec or 'no tensor'}" for i, (key, spec) in enumerate(zip(keys, specs, strict=True))
    )


def _key_text(path: Sequence[Any]) -> str:
    return "_".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)
