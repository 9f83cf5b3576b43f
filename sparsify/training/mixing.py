"""Mixes the samples of a batch before its forward pass, and adds the term of mixed samples to its loss, if the method says so."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sparsify.errors import TrainingError
from sparsify.ir import Program, RandomnessRecord
from sparsify.methods import Method
from sparsify.parts.mixing import MixedTarget, Mixing
from sparsify.parts.samples import Batch
from sparsify.parts.trees import Tree, rows_of, tensors
from sparsify.tasks import Task
from sparsify.training.counting import Extra
from sparsify.training.meaning import in_float32
from sparsify.training.mechanism import Mechanism
from sparsify.training.probe import Closure


class Mixer(Mechanism):
    """Mixes batches for a method.

    Args:
        mixing: how the method mixes.
        method: the method, whose name messages contain.
        program: mixed samples that do not replace the batch run through its train phase, each kind in a pass of its own.
        generator: generator of the run, from which shares and partners are drawn.
        counts: their passes are added to its ``forwards`` and ``backwards``.
        task: the task, which says what output the confidences are read from.
    """

    def __init__(
        self,
        mixing: Mixing,
        method: Method,
        program: Program,
        generator: torch.Generator,
        counts: dict[str, int],
        task: Task,
    ) -> None:
        self._mixing, self._name, self._program, self._generator = mixing, method.name, program, generator
        self._reads, self._extra = task.trained_on, Extra(counts)

    def prepare(self, inputs: Tree, target: Tree) -> Batch:
        """Draw pairings for a batch.

        Args:
            inputs: inputs [N, ...] in any form that `Program.call` accepts.
            target: target of the batch.

        Returns:
            The inputs of the forward pass, and a `MixedTarget`.

        Raises:
            TrainingError: If an input that is replaced is not of floating-point numbers.
        """
        pairings = self._mixing.pairings(rows_of(inputs), self._generator, tensors(inputs)[0].device)
        replaced = self._mixing.ranking is None
        return Batch(
            pairings[0].combined_inputs(inputs) if replaced else inputs, MixedTarget(target, pairings, replaced)
        )

    def join(self, loss: Tensor, output: Any, target: Any, inputs: Any) -> Tensor:
        """Add the term of the mixed samples to the loss; this takes a pass of the program for each pairing.

        Raises:
            TrainingError: If the batch was not prepared, there are no inputs, or they are not of floating-point numbers.
        """
        ranking = self._mixing.ranking
        if not isinstance(target, MixedTarget) or (ranking is not None and inputs is None):
            raise TrainingError(
                f"method {self._name!r} mixes the samples of a batch: call x, y = trainer.prepare(x, y) once per batch, before the "
                f"forward pass, and then trainer.loss(program(x), y, inputs=x)."
            )
        if ranking is None:
            return loss
        mixed = [self._logits(pairing.combined_inputs(inputs)) for pairing in target.pairings]
        self._extra.count(forwards=len(mixed), backwards=len(mixed) if torch.is_grad_enabled() else 0)
        return loss + ranking.weight * ranking.loss(output, mixed, target.own, target.pairings)

    def _logits(self, inputs: Tree) -> Tensor:
        with _apart(self._program):
            leaves = pytree.tree_leaves(self._program.call(inputs))
        return in_float32(self._program.reading(self._reads, "train", leaves))

    def before_step(self, step: int, closure: Closure | None) -> None:
        self._extra.reset()

    def after_step(self, step: int, moved: bool) -> None:
        self._extra.reset()


@contextmanager
def _apart(program: Program) -> Generator[None]:
    """Within the block, run the program a second time for a loss without side effects between the passes.

    Random numbers that are recorded, as for a correction, are those of the batch's own pass, so that a probe finds these in the record and
    not those of a later pass. Autocast does not share its casts of weights between passes, whose gradients would be added in low precision.
    """
    records = [hook for hook in program.hooks().values() if isinstance(hook, RandomnessRecord)]
    before, cached = [record.replaying for record in records], torch.is_autocast_cache_enabled()
    try:
        torch.set_autocast_cache_enabled(False)
        for record in records:
            record.replaying = True
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        for record, replaying in zip(records, before, strict=True):
            record.replaying = replaying
