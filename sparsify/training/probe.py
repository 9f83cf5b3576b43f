"""A probe: one batch evaluated again with other parameter values. It changes nothing but its counts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from sparsify.ir import Program, RandomnessRecord
from sparsify.ir.nodes import random_state, set_random_state, vouched
from sparsify.parts.corrections import Evaluation, Tensors

Closure = Callable[[], Tensor]
"""Computes the loss of a batch, a scalar, by a forward pass of the program in train mode, without a backward pass."""
Sweep = Callable[[], Iterable[Closure]]
"""Yields the losses of training batches in a new random order; each is evaluated before the next is made."""
COUNTED = ("rounds", "skipped_rounds", "skipped_steps", "probes", "forwards", "backwards")
"""What a trainer counts."""


class ProbedBatch:
    """A batch that can be evaluated at any parameter values; see `sparsify.parts.corrections.Batch`.

    Args:
        program: in train mode. Lowered masks read the given values without masking, so an old snapshot keeps the positions it had.
        closure: computes the loss of the batch.
        counts: its ``probes``, ``forwards`` and ``backwards`` are incremented.
        of_step: True for the batch of the current step, whose dropout is replayed; other batches draw new random numbers once.
        dense: whether to record gradients of inactive positions with the program's taps.
    """

    def __init__(
        self, program: Program, closure: Closure, counts: dict[str, int], *, of_step: bool, dense: bool
    ) -> None:
        self._program, self._closure, self._counts = program, closure, counts
        self._of_step, self._dense = of_step, dense
        self._start: tuple[Tensor, ...] | None = None

    def loss(self, at: Tensors | None = None) -> Tensor:
        """Compute the loss with the parameter values ``at``; one forward pass."""
        with torch.no_grad(), self._elsewhere(at, armed=False):
            loss = self._closure()
        self._counts["probes"] += 1
        self._counts["forwards"] += 1
        return loss.detach()

    def evaluate(self, at: Tensors | None = None) -> Evaluation:
        """Compute loss and gradients with the parameter values ``at``; one forward and one backward pass."""
        parameters = {name: p for name, p in self._program.named_parameters() if p.requires_grad}
        with self._elsewhere(at, armed=self._dense):
            loss = self._closure()
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            gradients = {name: g for name, g in zip(parameters, found, strict=True) if g is not None}
            dense = self._densened(gradients) if self._dense else {}
        for key in ("probes", "forwards", "backwards"):
            self._counts[key] += 1
        return Evaluation(loss.detach(), gradients, dense)

    def _densened(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        masks, dense = self._program.masks(), dict(gradients)
        taps = {name: tap.gradient for name, tap in self._program.taps().items() if tap.gradient is not None}
        dense.update(taps)
        for site in self._program.random_mask_sites():
            name, chance = site.weight, 1.0 - site.rate
            if name in taps:
                seen = taps[name] * self._program.get_buffer(site.visible) / chance
                dense[name] = torch.where(masks[name], seen, taps[name]) * site.scale
            elif name in dense:
                dense[name] = gradients[name] / chance
        return dense

    @contextmanager
    def _elsewhere(self, at: Tensors | None, *, armed: bool) -> Generator[None]:
        with ExitStack() as stack:
            stack.enter_context(_random_numbers(self._program, self))
            stack.enter_context(_parameters(self._program, at or {}))
            stack.enter_context(_buffers(self._program))
            stack.enter_context(_taps(self._program, armed=armed))
            yield


@contextmanager
def _parameters(program: Program, at: Tensors) -> Generator[None]:
    """Within the block, use other parameter values; lowered masks read them without masking."""
    parameters, masks = dict(program.named_parameters()), program.masks()
    kept = {name: parameters[name].data for name in at}
    try:
        for name, value in at.items():
            parameters[name].data = value
        with ExitStack() as stack:
            for name in at.keys() & masks.keys():
                stack.enter_context(vouched(parameters[name], masks[name]))
            yield
    finally:
        for name, value in kept.items():
            parameters[name].data = value


@contextmanager
def _buffers(program: Program) -> Generator[None]:
    """Restore running statistics and counters after the block; masks do not change in a forward pass."""
    buffers = {name: buffer for name, buffer in program.named_buffers() if buffer.dtype is not torch.bool}
    kept = {name: buffer.detach().clone() for name, buffer in buffers.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(kept[name])


@contextmanager
def _taps(program: Program, *, armed: bool) -> Generator[None]:
    """Within the block, arm all taps or none; then restore what the step itself recorded."""
    taps = list(program.taps().values())
    kept = [dict(tap.__dict__) for tap in taps]
    try:
        for tap in taps:
            tap.armed, tap.in_grad, passed = armed, False, tap.passed
            tap.clear()
            tap.passed = passed
        yield
    finally:
        for tap, before in zip(taps, kept, strict=True):
            tap.__dict__.update(before)


@contextmanager
def _random_numbers(program: Program, batch: ProbedBatch) -> Generator[None]:
    """Within the block, draw the random numbers of the step, or of the batch's first evaluation; repeats do not advance the stream."""
    records = [hook for hook in program.hooks().values() if isinstance(hook, RandomnessRecord)]
    devices = {torch.device("cpu"), next(program.parameters()).device}
    before = tuple(random_state(device) for device in devices)
    kept, first = [record.state for record in records], not batch._of_step and batch._start is None
    if first:
        batch._start = before
    elif batch._start is not None:
        _restore(devices, batch._start)
    try:
        for record in records:
            record.replaying = True
            record.state = record.state if batch._of_step else None
        yield
    finally:
        for record, state in zip(records, kept, strict=True):
            record.replaying, record.state = False, state
        if not first:
            _restore(devices, before)


def _restore(devices: Iterable[torch.device], states: Iterable[Tensor]) -> None:
    for device, state in zip(devices, states, strict=True):
        set_random_state(state, device)
