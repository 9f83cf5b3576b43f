"""Keeps inactive weights and their gradients at 0 after every step, whatever the optimizer, its state and the gradients did."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sparsify.ir import GradientTap, Program
from sparsify.ir.gradients import mask_gradient, multiplier
from sparsify.ir.nodes import vouch
from sparsify.training.mechanism import Mechanism


@dataclass(eq=False)
class _Place:
    """Where to find a weight and its mask: in the tables of their modules, because ``program.to`` replaces masks."""

    parameters: Mapping[str, Any]
    weight: str
    buffers: Mapping[str, Any]
    mask: str
    hook: RemovableHandle | None = None


class Zeros(Mechanism):
    """Masks the weights of a program after each step, and their gradients when they arrive.

    It vouches that inactive weights are 0, so that lowered masks read the weights directly.
    """

    def __init__(self, program: Program) -> None:
        self._program, masks, taps = program, program.masks(), program.taps()
        self._places = [
            _Place(*slot_of(program, name, "_parameters"), *slot_of(program, f"{name}_mask", "_buffers"))
            for name in masks
        ]
        self._all = dict(zip(masks, self._places, strict=True))
        for name, place in self._all.items():
            self._hook(name, place, taps)
        self.active = bool(self._places)

    def __deepcopy__(self, memo: dict[int, Any]) -> Zeros:
        made = Zeros(copy.deepcopy(self._program, memo))
        made.leave_out(self._all.keys() - {name for name, place in self._all.items() if place in self._places})
        memo[id(self)] = made
        return made

    def _hook(self, name: str, place: _Place, taps: Mapping[str, GradientTap]) -> None:
        weight = place.parameters[place.weight]
        if weight.requires_grad:
            place.hook = mask_gradient(weight, _current(place, taps.get(name)))

    def hooks_of(self, weight: Tensor) -> set[int]:
        """Return the keys of the hooks by which this mechanism masks the gradient of a weight."""
        places = (place for place in self._all.values() if place.hook is not None)
        return {place.hook.id for place in places if place.hook and place.parameters[place.weight] is weight}

    def leave_out(self, names: Container[str]) -> None:
        """Leave out weights that are stored compact, and take all others back."""
        taps = self._program.taps()
        for name, place in self._all.items():
            if name in names and place.hook is not None:
                place.hook.remove()
                place.hook = None
            elif name not in names and place not in self._places:
                self._hook(name, place, taps)
        self._places = [place for name, place in self._all.items() if name not in names]

    def keep(self, clean: Collection[int] = ()) -> None:
        """Set inactive weights to 0, except in parameters whose ids are in ``clean``: those are 0 there."""
        places = self._places
        if clean:
            places = [place for place in places if id(place.parameters[place.weight]) not in clean]
        if not places:
            return
        weights = [place.parameters[place.weight] for place in places]
        masks = [place.buffers[place.mask] for place in places]
        with torch.no_grad():
            torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
                weights, [multiplier(mask, weight.dtype) for weight, mask in zip(weights, masks, strict=True)]
            )

    def start(self) -> None:
        self.vouch()

    def after_step(self, step: int, moved: bool) -> None:
        del step, moved
        self.vouch()

    def vouch(self) -> None:
        """Vouch that inactive weights are 0 now, and that their gradients are masked when they arrive."""
        for place in self._places:
            mask = place.buffers[place.mask]
            vouch(place.parameters[place.weight], mask)
            mask.hook = None if place.hook is None else place.hook.id

    def finish(self) -> bool:
        """Let the graphs mask gradients again."""
        for place in self._places:
            if place.hook is not None:
                place.hook.remove()
        return False


def _current(place: _Place, tap: GradientTap | None) -> Callable[[], Tensor | None]:
    """Return a function for the current mask; it returns None if the mask is gone, or if a tap leaves the dense gradient to a round."""
    buffers, name = place.buffers, place.mask

    def current() -> Tensor | None:
        return None if tap is not None and tap.armed and tap.in_grad else buffers.get(name)

    return current


def slot_of(program: Program, name: str, table: str) -> tuple[dict[str, Any], str]:
    """Return the table of a module that contains a parameter or buffer, and its key there.

    Args:
        name: its name in the program.
        table: ``_parameters`` or ``_buffers``.
    """
    path, _, leaf = name.rpartition(".")
    module: torch.nn.Module = program
    for part in path.split(".") if path else ():
        child = module._modules[part]
        assert child is not None
        module = child
    return getattr(module, table), leaf
