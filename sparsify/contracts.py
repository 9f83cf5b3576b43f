"""Tests what methods, passes, tasks and heads promise: one call for the tests of a plug-in.

sparsify.contracts.check(my_method(density=0.2))      # a method
sparsify.contracts.check(MyPass(limit=6.0))           # a pass
sparsify.contracts.check(MyTask(), output, target)    # a task, with a batch that fits it
sparsify.contracts.check(MyHead(), task, output, target)  # a calibration head, with a task and held-out samples
"""

from __future__ import annotations

import dataclasses
import functools
import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import ContractError
from sparsify.exporters import export
from sparsify.heads import HEADS, Fitted, Head, check_head, register
from sparsify.heads import run as compute
from sparsify.heads.base import FEATURES
from sparsify.heads.contract import agree, example_reads
from sparsify.ir import Program, trace
from sparsify.ir.heads import prefix_of
from sparsify.methods import Method
from sparsify.parts.patterns import parse_pattern
from sparsify.passes import AttachCalibrationHead, Pass, Pipeline
from sparsify.passes.contract import check_pass
from sparsify.reading.digits import digits_arrays
from sparsify.tasks import Task, build, check_task
from sparsify.training import SparseTrainer, attach

__all__ = ["check", "check_method"]

STEPS, INTERRUPTED = 40, 13
"""Optimizer steps of a run that a method is tried in, and the step after which one of them is saved and resumed."""


def check(thing: Method | Pass | Task | Head, *batch: Any) -> None:
    """Try what a thing promises, and raise where a promise is broken.

    Args:
        thing: a method (see `check_method`), a pass (`sparsify.passes.contract.check_pass`), a task (`sparsify.tasks.check_task`), or a
            calibration head (`sparsify.heads.check_head`, and then in a program and its exported file).
        batch: for a task, fitting outputs and targets of at least two samples; for a head, a task, then such outputs and targets.

    Raises:
        ContractError: If a method or a head breaks a promise, naming it and what was found, if a task names a head that is not
            registered, or if there is nothing to try.
        PassError: If a pass does.
        TaskError: If a task does.

    Examples:
        >>> import sparsify as sp
        >>> from sparsify.contracts import check
        >>> check(sp.methods.set(density=0.2, update_every=5))
    """
    match thing:
        case Method():
            check_method(thing)
        case Pass():
            check_pass(thing)
        case Task():
            if len(batch) != 2:
                raise ContractError(
                    f"a task is tried on a batch: check(task, output, target), found {len(batch)} arguments after the task."
                )
            check_task(thing, *batch)
            if unknown := [name for name in thing.heads if name not in HEADS]:
                raise ContractError(
                    f"task {thing.name!r} names the calibration heads {', '.join(unknown)}, which are not registered. `sparsify heads` "
                    f"lists those that are."
                )
        case Head():
            if len(batch) != 3:
                raise ContractError(
                    f"a calibration head is tried on a batch of a task: check(head, task, output, target), found {len(batch)} arguments "
                    f"after the head."
                )
            task, output, target = batch
            _head_of_a_program(thing, check_head(thing, task, output, target), build(task), output.detach().float())
        case _:
            raise ContractError(
                f"check takes a method, a pass, a task or a calibration head, found {type(thing).__name__}. Call the function of a method "
                f"with its options first."
            )


@dataclass
class _Run:
    program: Program
    optimizer: torch.optim.Optimizer
    trainer: SparseTrainer
    salt: int
    """Seeds the global random state, which no method should draw from."""


def check_method(method: Method) -> None:
    """Try a method in short runs of a small convolutional network on scikit-learn's digits.

    - Inactive weights, and what the optimizer remembers of them, are exactly 0 after every step.
    - Masks hold the pattern, and change in rounds only; no round makes the network denser unless the method starts sparser.
    - The run ends at the density that the method says, as exactly as units of the pattern allow.
    - The same seed gives the same bits, whatever the global random state, and so does a run that is saved, loaded and resumed.
    - Folding the masks does not change the outputs.

    Args:
        method: a method with a density, and with options that fit a run of 40 steps (such as ``update_every=5``).

    Raises:
        ContractError: If a promise is broken; the message names the first one and what was found.
    """
    first, saved = _attached(method), io.BytesIO()
    masks, rounds = _masks(first.program), 0
    for step in range(1, STEPS + 1):
        _step(first)
        now, made = _masks(first.program), first.trainer.counts["rounds"]
        _zeros(method, first, step)
        changed = [name for name in now if not torch.equal(now[name], masks[name])]
        _promise(
            method, made > rounds or not changed, f"the masks of {changed[:2]} change on step {step} without a round"
        )
        masks, rounds = now, made
        if step == INTERRUPTED:
            torch.save([first.program.state_dict(), first.optimizer.state_dict(), first.trainer.state_dict()], saved)
    _density(method, first.program)
    _same(method, first, saved)
    _folds(method, first)


def _promise(method: Method, kept: bool, broken: str) -> None:
    if not kept:
        raise ContractError(f"method {method.name!r} breaks a promise: {broken}.")


@functools.cache
def _data() -> tuple[Tensor, Tensor]:
    arrays = digits_arrays()
    return torch.from_numpy(arrays["x_train"][:64])[:, None].float() / 255, torch.from_numpy(
        arrays["y_train"][:64]
    ).long()


@functools.cache
def _models() -> tuple[Program, nn.Module]:
    """The network, traced once, and a teacher."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        program = trace(nn.Sequential(*layers, nn.Linear(128, 10)), (_data()[0][:16],))
        return program, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


def _attached(method: Method, salt: int = 0) -> _Run:
    traced, teacher = _models()
    program = traced.clone().train()
    if method.reference is not None:
        method = dataclasses.replace(method, objective=method.reference([1.0] * 10), reference=None)
    optimizer = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    given: dict[str, Any] = {"teacher": teacher} if method.distillation else {}

    def sweep() -> list[Callable[[], Tensor]]:
        return [_loss(run, index) for index in range(4)]

    if method.individual:
        given["calibration"] = lambda: tuple(values[48:] for values in _data())
    trainer = attach(method, program, optimizer, total_steps=STEPS, seed=7, epoch_steps=6, sweep=sweep, **given)
    run = _Run(program, optimizer, trainer, salt)
    return run


def _loss(run: _Run, index: int) -> Callable[[], Tensor]:
    x, y = run.trainer.prepare(*(values[16 * index : 16 * index + 16] for values in _data()))
    return lambda: run.trainer.loss(run.program(x), y, inputs=x)


def _step(run: _Run) -> None:
    loss = _loss(run, run.trainer.steps % 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.salt + run.trainer.steps)
        loss().backward()
        run.trainer.step(loss)
    run.optimizer.zero_grad()


def _masks(program: Program) -> dict[str, Tensor]:
    return {name: mask.clone() for name, mask in program.masks().items()}


def _zeros(method: Method, run: _Run, step: int) -> None:
    kind = parse_pattern(method.pattern)
    for name, mask in run.program.masks().items():
        weight = run.program.weight(name)
        stray = int(weight.detach()[~mask].count_nonzero())
        _promise(method, not stray, f"{stray} inactive weights of {name!r} are not 0 after step {step}")
        for key, value in run.optimizer.state[weight].items():
            moved = isinstance(value, Tensor) and value.shape == mask.shape and bool(value[~mask].any())
            _promise(method, not moved, f"{key} of {name!r} remembers inactive weights after step {step}")
        fits = bool(mask.all()) or kind.holds(mask)
        _promise(method, fits, f"the mask of {name!r} does not hold the pattern {method.pattern!r} after step {step}")


def _density(method: Method, program: Program) -> None:
    costs, kind = program.costs(), parse_pattern(method.pattern)
    if not costs.maskable:
        return
    wanted = method.density * costs.maskable
    unit = max(kind.unit_size(tuple(mask.shape)) for mask in program.masks().values())
    text = f"{costs.active} of {costs.maskable} weights are active at the end, and density {method.density:.4g} asks for {wanted:.0f}"
    _promise(method, abs(costs.active - round(wanted)) <= unit, text)


def _same(method: Method, first: _Run, saved: io.BytesIO) -> None:
    again, resumed = _attached(method, 1000), _attached(method, 2000)
    saved.seek(0)
    weights, moments, state = torch.load(saved, weights_only=True)
    resumed.program.load_state_dict(weights)
    resumed.optimizer.load_state_dict(moments)
    resumed.trainer.load_state_dict(state)
    for run, what in ((again, "the same seed gives"), (resumed, f"a run resumed after step {INTERRUPTED} ends in")):
        while run.trainer.steps < STEPS:
            _step(run)
        other = _differing(first.program.state_dict(), run.program.state_dict())
        _promise(method, not other, f"{what} other bits in {other[:80]}")


def _differing(want: Mapping[str, Tensor], have: Mapping[str, Tensor]) -> str:
    return ", ".join(name for name, value in want.items() if not torch.equal(value, have[name]))


def _folds(method: Method, run: _Run) -> None:
    x, _ = _data()
    run.trainer.finish(x.split(16))
    program = run.program.eval()
    if program.masks():
        folded = Pipeline.parse("fold-masks")(program)
        _promise(method, torch.equal(folded(x), program(x)), "folding its masks changes the outputs")


class _Scores(nn.Module):
    """Returns its input, so that outputs of any model can be given to a program."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class _Classifier(nn.Linear):
    """Passes features on as logits."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, classes)
        with torch.no_grad():
            self.weight.copy_(torch.eye(classes))
            self.bias.zero_()


def _head_of_a_program(head: Head, fitted: Fitted, task: Task, output: Tensor) -> None:
    """The nodes of a program compute what the head computes with tensors, and the program is exported and proved.

    Raises:
        ContractError: If they do not.
        ExportError: If it cannot be exported.
    """
    with HEADS.forgetting(), tempfile.TemporaryDirectory() as folder:
        register(head)
        model = _Classifier(output.shape[1]) if FEATURES in head.reads else _Scores()
        program = trace(model, (output[:2],), task=task).eval()
        first = ["temperature"] if "probabilities" in head.reads else []
        steps = (AttachCalibrationHead(kind=kind, task=task.name) for kind in (*first, head.spec))
        program = Pipeline(tuple(steps))(program).eval()
        state = {name: value.float() for name, value in fitted.values.items()}
        for name, value in state.items():
            program.tensor(prefix_of(head) + name).copy_(value)
        found = program.outputs(output)
        for name, value in zip(
            head.outputs, head.apply(compute, example_reads(head, task, output), state, task), strict=True
        ):
            if not agree(found[name], value):
                raise ContractError(
                    f"calibration head {head.name!r} breaks a promise: output {name!r} of a program differs from what apply() computes "
                    f"with tensors."
                )
        export(program, f"{folder}/model.onnx", inputs=[output])
