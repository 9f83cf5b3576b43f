"""`attach`: make a trainer from a method, a program and its optimizers; if that fails, they stay unchanged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch

from sparsify.arguments import LATER, checked
from sparsify.errors import TrainingError
from sparsify.ir import Program, Stage
from sparsify.methods import Method
from sparsify.tasks import Task
from sparsify.training.compact_weights import Compact
from sparsify.training.individual import Calibration
from sparsify.training.optimizers import Optimizers, check_single_process
from sparsify.training.probe import Sweep
from sparsify.training.state import SparseTrainer
from sparsify.training.teaching import Teacher
from sparsify.training.undo import undone_on_error

_WHOLE = "{name}: KEY should be a whole number, found {found}. Convert it with int()."


@checked(
    TrainingError,
    method="attach takes a method first, found {found}. Build one by calling it: sparsify.methods.NAME(density=0.1).",
    program="attach takes a traced program second, found {found}. Trace the model: sparsify.trace(model, (x,)).",
    **{key: _WHOLE.replace("KEY", key) for key in ("total_steps", "seed", "epoch_steps")},
)
def attach(
    method: Method,
    program: Program,
    optimizer: Annotated[torch.optim.Optimizer | Iterable[torch.optim.Optimizer], LATER],
    *,
    total_steps: int,
    seed: int = 0,
    epoch_steps: int | None = None,
    sweep: Sweep | None = None,
    teacher: Teacher | None = None,
    calibration: Calibration | None = None,
    task: str | Task | None = None,
    compact: Compact = "auto",
) -> SparseTrainer:
    """Make ``program`` sparse in place and return the trainer whose ``step()`` replaces ``optimizer.step()``.

    Frozen weights (``requires_grad`` is False) stay dense and unchanged. If `attach` raises, program and optimizers are unchanged.

    Args:
        method: from `sparsify.methods`.
        program: of stage TRACED; the optimizer must hold its parameters. A program of stage MASKED, as a run or ``insert-masks`` leaves
            it, continues from its masks: the method should have their density and pattern, or prune to a lower density.
        optimizer: over ``program.parameters()`` or those of the traced model, which are the same objects; or several optimizers, which are
            stepped in turn.
        total_steps: optimizer steps of the whole run, at least 1; durations given as shares are shares of this.
        seed: seed of random masks and random growth.
        epoch_steps: optimizer steps per epoch, for methods that do something once per epoch.
        sweep: for methods that evaluate more of the training data than the batch of a step: a function that returns the losses of training
            batches, in a new random order at each call; each loss is a function without arguments.
        teacher: for methods that learn from a teacher: a function from the inputs of a batch to what the task reads, such as logits
            [N, K]; for example a trained module in eval mode on the device of the inputs.
        calibration: for methods that calibrate by samples that are not trained on: a function that returns their inputs, as a call of the
            program takes them, and their class numbers [n], on the device of the program.
        task: what the outputs mean, for ``trainer.loss``: a task of `sparsify.tasks` or its name. None: classification, or regression if
            the program was traced for it.
        compact: which weights with grouped masks are stored compact until the last step, so that a step costs what is kept: ``auto``,
            those for which a step is predicted to be faster; ``always``, all that can be; ``never``, none. In the same way it selects the
            other sparse weights whose optimizer state is compact. `SparseTrainer.forms` says which are, and why others are not. State
            dicts hold dense weights.

    Raises:
        TrainingError: If an argument has the wrong type, the optimizers do not hold all trainable parameters, ``total_steps`` is below 1,
            no round would happen, the density would not be reached, the method needs a teacher or ``calibration``, is made for other tasks
            or does not fit the masks of the program, or several processes train together.
        PatternError: If the pattern does not fit a weight.
        AllocationError: If the density cannot be met.
        TaskError: If there is no task of that name.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> program = sp.trace(torch.nn.Linear(20, 5), torch.rand(2, 20)).train()
        >>> optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
        >>> trainer = sp.attach(sp.methods.gmp(density=0.1), program, optimizer, total_steps=40)
        >>> for _ in range(40):
        ...     loss = torch.nn.functional.cross_entropy(program(torch.rand(8, 20)), torch.randint(5, (8,)))
        ...     loss.backward()
        ...     trainer.step()
        ...     optimizer.zero_grad()
        >>> int(program.weight("weight").count_nonzero())
        10
    """
    if total_steps < 1:
        raise TrainingError(f"total_steps should be at least 1, found {total_steps}. Use len(loader) * epochs.")
    if epoch_steps is not None and epoch_steps < 1:
        raise TrainingError(f"epoch_steps should be at least 1, found {epoch_steps}. Use len(loader).")
    if program.stage is Stage.DEPLOYED:
        raise TrainingError(
            f"program {program.name!r} is deployed: its training is over, and only its eval phase is left. Attach to the program that "
            f"deploy was given, such as the program.sparsify of a run."
        )
    check_single_process(method)
    optimizers = Optimizers(optimizer)
    optimizers.check(program)
    given = {
        "total_steps": total_steps,
        "seed": seed,
        "epoch_steps": epoch_steps,
        "sweep": sweep,
        "teacher": teacher,
        "calibration": calibration,
        "task": task,
        "compact": compact,
    }
    with undone_on_error(program, optimizers):
        return SparseTrainer(method, program, optimizers, **given)
