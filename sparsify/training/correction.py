"""Applies a method's correction: prepares what it may see of a step, and passes its gradients to the optimizer."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.parts.corrections import Batch, Correction, GradientView
from sparsify.parts.layouts import Layout
from sparsify.training.elsewhere import Computed, Elsewhere, gathered, scattered
from sparsify.training.mechanism import Mechanism
from sparsify.training.probe import Closure, ProbedBatch, Sweep
from sparsify.training.random_masks import RandomMasks

NEEDS = {
    "epoch_steps": "epoch_steps=len(loader), the steps of an epoch",
    "sweep": "sweep, a function that returns the losses of the training batches, each a function without arguments",
}
"""What a correction may need of a loop, in words."""


class Corrector(Mechanism):
    """Applies a correction to the gradients of a program.

    The correction gets dense tensors and returns dense gradients, so that its state fits a weight in either form.

    Args:
        correction: the correction of the method.
        method: name of the method, for messages.
        program: the program with its masks and taps.
        random: the program's random masks.
        counts: counts of the trainer; probes are added to them.
        epoch_steps, sweep: as for `sparsify.attach`.
        layouts: the layouts of the weights that are stored compact, a mapping that follows them.

    Raises:
        TrainingError: If the correction needs one of them and it is missing; naming all that it needs.

    Attributes:
        state: state of the correction.
        applied: whether the gradients of the coming step are already corrected.
    """

    key = "correction"

    def __init__(
        self,
        correction: Correction,
        method: str,
        program: Program,
        random: RandomMasks,
        counts: dict[str, int],
        *,
        epoch_steps: int | None,
        sweep: Sweep | None,
        layouts: Mapping[str, Layout],
    ) -> None:
        self._correction, self._method, self._program, self._random = correction, method, program, random
        self._counts, self._epoch_steps, self._sweep = counts, epoch_steps, sweep
        self._layouts, self._elsewhere = layouts, Elsewhere(program, layouts)
        self.state: Any = None
        self.applied = False
        given = {"epoch_steps": epoch_steps, "sweep": sweep}
        if missing := [name for name in correction.needs if given.get(name) is None]:
            wanted = " and ".join(NEEDS.get(name, name) for name in missing)
            raise TrainingError(
                f"method {method!r} corrects gradients by more than the batch of a step: give sparsify.attach {wanted}. Call "
                f"trainer.step with the loss of the batch as well: trainer.step(lambda: criterion(program(x), y))."
            )

    def start(self) -> None:
        """Start, or start over, from the present weights."""
        self.state = self._correction.init(self._weights())

    def _weights(self) -> Computed:
        trained = {name: p.detach() for name, p in self._program.named_parameters() if p.requires_grad}
        return Computed({n: functools.partial(scattered, self._layouts, n, value) for n, value in trained.items()})

    def before_step(self, step: int, closure: Closure | None) -> None:
        """Replace the gradients of ``step`` once; gradients of inactive or hidden weights stay 0.

        Raises:
            TrainingError: If the correction evaluates the batch again but there is no closure, or needs a sweep and has none.
        """
        if self.applied:
            return
        parameters, masks = dict(self._program.named_parameters()), self._program.masks()
        view = GradientView(
            step=step,
            epoch_steps=self._epoch_steps,
            weights=self._weights(),
            masks=masks,
            gradients={
                name: scattered(self._layouts, name, p.grad) for name, p in parameters.items() if p.grad is not None
            },
            batch=self._batch(closure or self._absent, of_step=True),
            sweep=self._swept,
        )
        with self._random.kept():
            corrected, self.state = self._correction.correct(view, self.state)
        visible = self._random.visible()
        for name, value in corrected.items():
            value = value * masks[name] if name in masks else value
            value = value * visible[name] if name in visible else value
            parameters[name].grad = gathered(self._layouts, name, value)
        self.applied = True

    def after_step(self, step: int, moved: bool) -> None:
        """Note that the next step has new, uncorrected gradients."""
        del step, moved
        self.applied = False

    def _absent(self) -> Tensor:
        raise TrainingError(
            f"method {self._method!r} corrects gradients and needs the loss of the batch again: call "
            f"trainer.step(lambda: criterion(program(x), y))."
        )

    def readings(self) -> dict[str, float]:
        """Return figures of the correction, by name."""
        return dict(self._correction.readings(self.state))

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state, self.applied = state, False

    def _batch(self, closure: Closure, *, of_step: bool) -> Batch:
        return ProbedBatch(
            self._program,
            closure,
            self._counts,
            of_step=of_step,
            dense=self._correction.dense,
            elsewhere=self._elsewhere,
        )

    def _swept(self, limit: int | None) -> Iterator[Batch]:
        """Yield the batches of the user's sweep, each with its own random masks."""
        if self._sweep is None:
            raise TrainingError(
                f"method {self._method!r} looks at more of the training data than the batch of a step: give sparsify.attach a sweep, "
                f"a function that returns the losses of training batches."
            )
        for closure in itertools.islice(self._sweep(), limit):
            self._random.draw()
            yield self._batch(closure, of_step=False)
