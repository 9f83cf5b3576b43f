"""Tests on a batch what every calibration head promises; use it to test a head of your own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.arguments import found
from sparsify.errors import ContractError
from sparsify.figures import metrics
from sparsify.heads.base import FEATURES, OUTPUT, Fitted, Head, HeldOut, State, run
from sparsify.heads.registry import HEADS, fitting
from sparsify.heads.scaling import Scaling
from sparsify.tasks import Task, build
from sparsify.tasks.base import judged

CALIBRATED = ("probabilities", "lower", "upper")
"""Names of outputs that figures and reports read as calibrated."""


def agree(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are equal up to rounding; whole numbers and bools must be exactly equal."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.allclose(first, second) if first.is_floating_point() else torch.equal(first, second)


def check_head(head: Head, task: str | Task, output: Tensor, target: Tensor) -> Fitted:
    """Test the promises of `Head` on the outputs and targets of held-out samples.

    Args:
        head: the head to test; it need not be registered.
        task: a task that the head fits.
        output: the output that the task reads, floating-point [N, ...], for samples that determine the head.
        target: targets of the samples, [N, ...].

    Returns:
        The result of the fit.

    Raises:
        ContractError: If a promise is broken; the message names the first one and what was found.

    Examples:
        >>> import torch
        >>> from sparsify.heads import Temperature, check_head
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [4.0, 0.0]])
        >>> fitted = check_head(Temperature(), "classification", logits, torch.tensor([0, 1, 0, 1]))
        >>> round(float(fitted.values["temperature"]), 3)  # 4 / ln 3: three of four are right
        3.641
    """
    if not isinstance(head, Head):
        raise ContractError(f"a calibration head is a sparsify.heads.Head, found {found(head)}. Derive it from Head.")
    meaning, given = build(task), [output.clone(), target.clone()]
    held = _held_out(head, meaning, output, target)
    before = _declared(head, meaning, output, held)
    _applied(head, meaning, output, before)
    fitted = _fitted(head, held, before)
    _promise(head, all(map(torch.equal, given, (output, target))), "apply() or fit() changes the tensors it is given")
    return fitted


def example_reads(head: Head, task: Task, output: Tensor) -> Any:
    """Return what a head reads of samples, for a test: features are the output itself, and other heads have not been fitted.

    Args:
        head: the head to test.
        task: what the output means.
        output: the output that the task reads, [N, ...].

    Raises:
        ContractError: If the head reads the output of a head that is not known here.
    """
    values = tuple(_example(head, task, output, name) for name in head.reads)
    return values[0] if len(values) == 1 else values


def _example(head: Head, task: Task, output: Tensor, name: str) -> Tensor:
    if name in (OUTPUT, FEATURES):
        return output
    if name == "probabilities" and task.link != "none":
        return output.sigmoid() if task.link == "sigmoid" else output.softmax(task.class_dim)
    raise ContractError(
        f"calibration head {head.name!r} reads {name!r}; it may read {OUTPUT!r}, {FEATURES!r}, and 'probabilities' of a task that has some."
    )


def _held_out(head: Head, task: Task, output: Tensor, target: Tensor) -> HeldOut:
    """Return samples whose features are the output, which a classifier passes on unchanged."""
    values = output.detach().cpu().double()
    others = {name: _example(head, task, values, name) for name in head.reads if name != OUTPUT}
    classes = int(output.shape[-1])
    layer = torch.eye(classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
    return HeldOut(
        values,
        target.cpu(),
        task,
        others=others,
        classifier=layer if FEATURES in head.reads else None,
        again=lambda change: change(values),
    )


def _declared(head: Head, task: Task, output: Tensor, held: HeldOut) -> State:
    """Check names, buffers and tasks; returns the buffers before they are fitted."""
    offered = head.name in fitting(task) or task.name in head.tasks
    _promise(
        head,
        offered,
        f"it does not fit task {task.name!r}; name the task in `tasks`, or the head in `heads` of the task",
    )
    names = [*head.outputs]
    unique = bool(names) and len({*names, task.output}) == len(names) + 1
    strange = [name for name in head.beside if name not in head.outputs or name in CALIBRATED]
    _promise(
        head,
        not strange,
        f"`beside` names {', '.join(map(repr, strange))}; it should name some of `outputs`, and none of {', '.join(CALIBRATED)}, "
        f"which have the shape of what the task reads",
    )
    _promise(head, unique, f"outputs should be names other than {task.output!r}, each once; found {names}")
    before = head.identity(held.shape(head))
    shapes = {name: tuple(value.shape) for name, value in before.items()}
    _promise(head, head.owns(shapes), f"identity() gives {shapes}, and `buffers` says {dict(head.buffers)}")
    rivals = (
        [other for other in HEADS.values() if other.calibrates and other.name != head.name] if head.calibrates else []
    )
    others = [other.name for other in rivals if other.owns(shapes)]
    _promise(
        head, not others, f"head {', '.join(others)!r} has buffers of the same names and dimensions; choose other names"
    )
    return before


def _applied(head: Head, task: Task, output: Tensor, state: State) -> None:
    half = len(output) // 2
    values = head.apply(run, example_reads(head, task, output), state, task)
    _promise(
        head, len(values) == len(head.outputs), f"apply() gives {len(values)} values for the outputs {[*head.outputs]}"
    )
    for name, value in zip(head.outputs, values, strict=True):
        if name in head.beside:
            rows = isinstance(value, Tensor) and value.shape[:1] == output.shape[:1]
            _promise(head, rows, f"output {name!r}, which is one of `beside`, has no row per sample")
            continue
        alike = isinstance(value, Tensor) and (value.shape, value.dtype) == (output.shape, output.dtype)
        _promise(
            head,
            alike,
            f"output {name!r} has not the shape and the type of what the task reads; name it in `beside` if it is something else",
        )
    again = head.apply(run, example_reads(head, task, output[:half]), state, task)
    independent = all(agree(part, value[:half]) for part, value in zip(again, values, strict=True))
    _promise(head, independent, "the outputs of a sample depend on the other samples of the batch")
    if isinstance(head, Scaling):
        same = torch.equal(head.scaled(run, output, state), output)
        _promise(head, same, "scaled() changes the scores before anything is fitted; with identity() it should not")


def _fitted(head: Head, held: HeldOut, before: State) -> Fitted:
    try:
        fitted, again = head.fit(held, before), head.fit(held, before)
    except ValueError as error:
        raise ContractError(
            f"calibration head {head.name!r} cannot be tried: these samples do not determine it ({error}). Give others."
        ) from error
    want, have = ({name: tuple(value.shape) for name, value in state.items()} for state in (before, fitted.values))
    _promise(head, want == have, f"fit() gives {have} for buffers {want}")
    finite = all(bool(value.float().isfinite().all()) for value in fitted.values.values())
    _promise(head, finite, "fit() gives values that single precision cannot hold")
    _promise(head, _equal(fitted.values, again.values), "fit() differs from call to call")
    if isinstance(head, Scaling):
        scaled = head.scaled(run, held.output, fitted.values)
        first, second = (_nll(held.task, scores, held.target) for scores in (held.output, scaled))
        better = second <= first + 1e-6
        _promise(head, better, f"fit() raises the NLL of the samples it was fitted to from {first:.6g} to {second:.6g}")
    return fitted


def _nll(task: Task, output: Tensor, target: Tensor) -> float:
    scores, answers = judged(task, output, target)
    return metrics.nll(scores.softmax(1), answers)


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def _promise(head: Head, kept: bool, broken: str) -> None:
    if not kept:
        raise ContractError(f"calibration head {head.name!r} breaks a promise: {broken}.")
