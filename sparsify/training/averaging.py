"""Averages weights along the run, and estimates batch-norm statistics again for the average."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.methods import Averaging, Method
from sparsify.parts.averaging import running_mean
from sparsify.training.mechanism import Mechanism


class WeightAverage(Mechanism):
    """The running mean of the parameters as the training graph reads them.

    Attributes:
        means: the means by parameter name; empty before the first averaged step.
    """

    key = "averages"

    def __init__(self, plan: Averaging, program: Program) -> None:
        self.plan, self._program = plan, program
        self.means: dict[str, Tensor] = {}

    def after_step(self, step: int, moved: bool) -> None:
        """Add the weights after ``step`` to the mean, if the plan says so."""
        del moved
        program = self._program
        if step < self.plan.start_at or (step - self.plan.start_at) % self.plan.every:
            return
        count = (step - self.plan.start_at) // self.plan.every + 1
        sites = program.random_mask_sites() if self.plan.random_masks else ()
        hidden = {site.weight: program.get_buffer(site.visible) * site.scale for site in sites}
        masked = program.masks()
        for name, parameter in program.named_parameters():
            if parameter.requires_grad:
                value = program.weight(name).detach() if name in masked else parameter.detach()
                value = value * hidden[name] if name in hidden else value
                self.means[name] = running_mean(self.means.get(name), value, count)

    def finish(self) -> bool:
        """Give the program the averaged weights."""
        with torch.no_grad():
            for name, value in self.means.items():
                self._program.get_parameter(name).copy_(value)
        return bool(self.means)

    def state_dict(self) -> dict[str, Tensor]:
        return self.means

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.means = dict(state)


def check_averaging(method: Method, plan: Averaging, changes: Callable[[int], bool], total_steps: int) -> None:
    """Refuse an average over changing masks or over several trainings, and one that would never begin.

    Args:
        method: the method, whose name the message contains.
        plan: when to average.
        changes: returns whether masks change or training goes back after a step.
        total_steps: steps of the run.

    Raises:
        TrainingError: If the average is refused; the message names the step.
    """
    if plan.start_at > total_steps:
        raise TrainingError(
            f"method {method.name!r} averages weights from step {plan.start_at}, but the run has {total_steps}. Start earlier."
        )
    late = [step for step in range(plan.start_at, total_steps + 1) if changes(step)]
    if late:
        raise TrainingError(
            f"method {method.name!r} averages weights from step {plan.start_at}, but the topology still changes on "
            f"step {late[-1]}; an average over different masks is not sparse. Start averaging later, or lower stop_at."
        )


def reestimate_batch_norm(program: Program, batches: Iterable[Any]) -> int:
    """Replace running statistics by the mean over ``batches`` of each batch's own statistics (Izmailov et al. 2018, section 3.2).

    Statistics with momentum 0, which training does not change, stay unchanged.

    Args:
        program: its train phase runs once per batch, without gradients.
        batches: inputs of batches, in any form that `Program.call` accepts.

    Returns:
        The number of batches.

    Raises:
        TrainingError: If the program has running statistics and there are no batches.
    """
    sites = [site for site in program.batch_norm_sites() if site.momentum]
    if not sites:
        return 0
    statistics = {
        name: (program.get_buffer(name), site.momentum) for site in sites for name in (site.mean, site.variance)
    }
    means: dict[str, Tensor] = {}
    count, mode = 0, program.training
    program.train()
    with torch.no_grad():
        for count, batch in enumerate(batches, 1):
            for buffer, _ in statistics.values():
                buffer.zero_()  # the new value is then momentum times the batch's own
            program.call(batch)
            for name, (buffer, momentum) in statistics.items():
                means[name] = running_mean(means.get(name), buffer / momentum, count)
        for name, value in means.items():
            statistics[name][0].copy_(value)
    program.train(mode)
    if not count:
        raise TrainingError(
            "the weights at the end of this method are not those of the last step, and batch-norm statistics have to be taken "
            "for them: call trainer.finish(batches) with inputs of some training batches."
        )
    return count
