"""Leaky integrate-and-fire neurons: what a layer of them computes in a step of time, and over several steps.

A neuron holds a membrane potential v, which is 0 at the start. In each step it takes a current x:

    u = leak * v + x                 charge; with ``decay_input``, u = leak * v + (1 - leak) * x
    o = 1 where u >= threshold       fire, else 0
    v = u - threshold * o            soft reset; a hard reset is v = u * (1 - o), to 0

The derivative of firing is 0 almost everywhere, so gradients use that of a surrogate (`sparsify.parts.surrogates`) instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsify.parts.surrogates import SURROGATES, fire, step

RESETS = ("soft", "hard")


@dataclass(frozen=True)
class Neuron:
    """How a layer of neurons behaves, besides its leak and threshold.

    Attributes:
        reset: ``soft`` subtracts the threshold where a neuron fires, ``hard`` sets its potential to 0.
        surrogate: key of `sparsify.parts.surrogates.SURROGATES`, whose derivative stands for that of firing.
        slope: of the surrogate; None: its default.
        decay_input: whether a current is multiplied by 1 - leak.
        detach_reset: whether gradients ignore that firing resets the potential.
        through_time: whether gradients reach earlier steps through the potential; False is SLTT (Meng et al. 2023, arXiv:2302.14311).
    """

    reset: str = "soft"
    surrogate: str = "atan"
    slope: float | None = None
    decay_input: bool = False
    detach_reset: bool = False
    through_time: bool = True

    def __post_init__(self) -> None:
        if self.reset not in RESETS:
            raise ValueError(f"reset should be one of {', '.join(RESETS)}, found {self.reset!r}.")
        SURROGATES.find(self.surrogate)

    def step(self, current: Tensor, potential: Tensor, leak: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a step of time.

        Args:
            current: [N, ...].
            potential: [N, ...], after the step before.
            leak: [] or a shape that broadcasts, in [0, 1].
            threshold: [] or a shape that broadcasts, above 0.

        Returns:
            Spikes, 0 or 1, and the potential after the step; both of the shape of ``current``.
        """
        charged = self._charged(current, potential, leak)
        spikes = self._spikes(charged, threshold)
        return spikes, self._after(charged, spikes, threshold)

    def fired(self, currents: Sequence[Tensor], leak: Tensor, threshold: Tensor) -> list[Tensor]:
        """Return the spikes of each step, from the currents [N, ...] of each; the potential begins at 0."""
        first, made = currents[0], list[Tensor]()
        # The view is a value of its own, so that the gradients of the first potential are summed before they reach the current.
        charged = (1 - leak) * first if self.decay_input else first.view_as(first)
        for place, current in enumerate(currents):
            if place:
                charged = self._charged(current, self._after(charged, made[-1], threshold), leak)
            made.append(self._spikes(charged, threshold))
        return made

    def _spikes(self, charged: Tensor, threshold: Tensor) -> Tensor:
        over = charged - threshold
        return fire(over, self.surrogate, self.slope) if over.requires_grad else step(over)

    def _charged(self, current: Tensor, potential: Tensor, leak: Tensor) -> Tensor:
        potential = potential if self.through_time else potential.detach()
        return leak * potential + ((1 - leak) * current if self.decay_input else current)

    def _after(self, charged: Tensor, spikes: Tensor, threshold: Tensor) -> Tensor:
        spikes = spikes.detach() if self.detach_reset else spikes
        return charged - threshold * spikes if self.reset == "soft" else charged * (1 - spikes)
