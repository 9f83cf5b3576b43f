"""Rewinding: save an early state of a run, and let training go back to it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsify.ir import Program
from sparsify.parts.layouts import Layout
from sparsify.parts.topology import Rewinding
from sparsify.training.correction import Corrector
from sparsify.training.elsewhere import gathered, scattered
from sparsify.training.inactive import clear_inactive
from sparsify.training.mechanism import Mechanism
from sparsify.training.optimizers import Optimizers


class Rewinder(Mechanism):
    """Applies a rewinding plan to a program; masks are not rewound.

    Args:
        plan: the plan of the method.
        program: its parameters and buffers go back.
        optimizer: its state starts over.
        layouts: the layouts of the weights that are stored compact, a mapping that follows them; what is saved early is dense.
        corrector: it starts over too, because its state belongs to the training that ended.

    Attributes:
        early: parameters and buffers by name after ``plan.save_at`` steps; empty before that, and when no longer needed.
    """

    key = "early"

    def __init__(
        self,
        plan: Rewinding,
        program: Program,
        optimizer: Optimizers,
        layouts: Mapping[str, Layout],
        corrector: Corrector | None = None,
    ) -> None:
        self.plan, self.early = plan, dict[str, Tensor]()
        self._program, self._optimizer, self._layouts, self._corrector = program, optimizer, layouts, corrector

    def start(self) -> None:
        self.keep(0)

    def after_step(self, step: int, moved: bool) -> None:
        """Save the state or go back to it, if the plan says so."""
        del moved
        self.keep(step)
        if self.rewind(step) and self._corrector:
            self._corrector.start()

    def keep(self, step: int) -> None:
        """Save the state after ``step``, if the plan says so."""
        if self.plan.weights and step == self.plan.save_at:
            self.early = {name: scattered(self._layouts, name, value.clone()) for name, value in self._state().items()}

    def rewind(self, step: int) -> bool:
        """Go back after ``step``, if the plan says so; the optimizer's state then starts over.

        Returns:
            Whether it went back.
        """
        if step not in self.plan.at:
            return False
        with torch.no_grad():
            for name, value in self._state().items():
                if name in self.early:
                    value.copy_(gathered(self._layouts, name, self.early[name]))
        self._optimizer.state.clear()
        for name in self._program.masks():
            if name not in self._layouts:
                clear_inactive(self._program, self._optimizer, name)
        if step == self.plan.at[-1]:
            self.early = {}
        self._program.verify()
        return True

    def state_dict(self) -> dict[str, Tensor]:
        return self.early

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.early = dict(state)

    def _state(self) -> dict[str, Tensor]:
        masks = {f"{name}_mask" for name in self._program.masks()}
        masks |= {site.visible for site in self._program.random_mask_sites()}
        masks |= {f"{name}_{part}" for name in self._layouts for part in ("inputs", "places")}
        tensors = {**dict(self._program.named_parameters()), **dict(self._program.named_buffers())}
        return {name: value.detach() for name, value in tensors.items() if name not in masks}
