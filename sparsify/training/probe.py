"""A probe: one batch evaluated again with other parameter values. It changes nothing but its counts."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from sparsify.ir import Program, RandomnessRecord
from sparsify.ir.nodes import random_state, set_random_state
from sparsify.parts.corrections import Evaluation, Tensors
from sparsify.parts.layouts import Layout
from sparsify.training.elsewhere import Computed, Elsewhere

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
        elsewhere: gives the program other values; None: made for the weights that the program stores compact now.
    """

    def __init__(
        self,
        program: Program,
        closure: Closure,
        counts: dict[str, int],
        *,
        of_step: bool,
        dense: bool,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._values = elsewhere or Elsewhere(program)
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
        with self._elsewhere(at, armed=self._dense) as layouts:
            loss = self._closure()
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            named = {name: g for name, g in zip(parameters, found, strict=True) if g is not None}
            gradients = {name: self._scattered(layouts, name, value) for name, value in named.items()}
            dense = self._densened(gradients) if self._dense else {}
        for key in ("probes", "forwards", "backwards"):
            self._counts[key] += 1
        return Evaluation(loss.detach(), gradients, dense)

    def _scattered(self, layouts: Mapping[str, Layout], name: str, gradient: Tensor) -> Tensor:
        """Return the dense form of a weight's gradient; it is 0 at inactive positions, whatever values the probe gave these."""
        layout = layouts.get(name)
        if layout is None:
            return gradient
        dense = layout.scatter(gradient)
        return dense if self._values.is_own(name, layout) else dense * self._program.mask(name)

    def _densened(self, gradients: dict[str, Tensor]) -> Mapping[str, Tensor]:
        taps = {name: copy.copy(tap) for name, tap in self._program.taps().items() if tap.arrived}
        sites = {site.weight: site for site in self._program.random_mask_sites()}
        visible = {name: self._program.get_buffer(site.visible).clone() for name, site in sites.items()}

        def gradient(name: str) -> Tensor:
            site, recorded = sites.get(name), taps[name].gradient if name in taps else None
            if site is None:
                return gradients[name] if recorded is None else recorded
            chance = 1.0 - site.rate
            if recorded is None:
                return gradients[name] / chance
            seen = recorded * visible[name] / chance
            return torch.where(self._program.mask(name), seen, recorded) * site.scale

        return Computed({name: functools.partial(gradient, name) for name in gradients | taps})

    @contextmanager
    def _elsewhere(self, at: Tensors | None, *, armed: bool) -> Generator[Mapping[str, Layout]]:
        with ExitStack() as stack:
            stack.enter_context(_random_numbers(self._program, self))
            layouts = stack.enter_context(self._values.values(at or {}))
            stack.enter_context(_buffers(self._program))
            stack.enter_context(_taps(self._program, armed=armed))
            yield layouts


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
