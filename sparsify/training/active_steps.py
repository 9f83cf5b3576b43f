"""Steps the optimizers on active weights only: their state of a sparse weight is as small as its active part.

Between steps the loop sees the dense parameter and its dense gradient. During the optimizer's step, both contain only the active positions.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.ir import Program
from sparsify.parts.layouts import Positions
from sparsify.parts.top import ones
from sparsify.training.mechanism import Mechanism
from sparsify.training.optimizers import Optimizers, by_position, dense_state
from sparsify.training.zeros import slot_of


@dataclass(frozen=True)
class Bounds:
    """Where selecting the active positions takes less time than it saves, measured by `benchmarks/active_steps.py`.

    Attributes:
        smallest: the fewest positions of a weight.
        highest: the highest density.
    """

    smallest: int
    highest: float


BOUNDS = Bounds(smallest=8192, highest=0.5)
"""Of all optimizers but SGD: selecting positions takes longer than its whole step (`sparsify.training.fused_steps`)."""


@dataclass(eq=False)
class _Place:
    """A weight, and where to find its mask (``program.to`` replaces masks).

    Attributes:
        weight: the parameter.
        buffers, mask: the table that contains the mask, and its key.
        highest: the highest density at which only active positions are stepped.
        layout: the positions whose state the optimizer has; None if it has dense state.
        seen: the mask from which ``layout`` was read, and its count of writes; None: look again.
        taken: the gradient that was read last, its count of writes, and its values in ``layout``.
    """

    weight: nn.Parameter
    buffers: Mapping[str, Any]
    mask: str
    highest: float
    layout: Positions | None = None
    seen: tuple[int, int] | None = None
    taken: tuple[Tensor, int, Tensor] | None = None

    def is_current(self) -> bool:
        """Return whether the mask is the one that was seen."""
        mask = self.buffers[self.mask]
        return self.seen is not None and self.seen == (id(mask), mask._version)


class ActiveSteps(Mechanism):
    """Lets the optimizers of a run step the active positions of sparse weights only.

    Weights that are stored compact in the program have compact state anyway and are left out, as are weights with random masks, whose
    hidden positions move too.

    Args:
        program: the program of the run.
        optimizers: the optimizers of the run; only those that treat each position on its own are changed.
        mode: ``auto`` where it is faster; ``always`` for all weights; ``never`` for none.
    """

    key = "active_steps"

    def __init__(self, program: Program, optimizers: Optimizers, mode: str) -> None:
        self._program, self._optimizers, self._mode = program, optimizers, mode
        self._handles: list[Any] = []
        self._places: dict[str, _Place] = {}
        self._by_id: dict[int, _Place] = {}
        self._since: dict[str, int] = {}
        self.active = False

    def prepare(self) -> None:
        """Find the weights of which active positions may be stepped."""
        hidden = {site.weight for site in self._program.random_mask_sites()}
        bounds = {
            id(weight): bounds_of(optimizer, self._mode)
            for optimizer in self._optimizers.each
            for group in optimizer.param_groups
            for weight in group["params"]
        }
        for name, mask in self._program.masks().items():
            weight = self._program.get_parameter(name)
            found = bounds.get(id(weight))
            if found is not None and name not in hidden and weight.ndim > 1 and mask.numel() >= found.smallest:
                where = slot_of(self._program, f"{name}_mask", "_buffers")
                self._places[name] = _Place(weight, *where, found.highest)
        self._by_id = {id(place.weight): place for place in self._places.values()}
        self.active = bool(self._places)

    def start(self) -> None:
        if self.active:
            self._watch()

    def __deepcopy__(self, memo: dict[int, Any]) -> ActiveSteps:
        made = ActiveSteps(copy.deepcopy(self._program, memo), copy.deepcopy(self._optimizers, memo), self._mode)
        memo[id(self)] = made
        if self._handles:
            made.prepare()
            made.start()
            made._since = dict(self._since)
            for name, place in made._places.items():
                place.layout = self._places[name].layout
        return made

    def forms(self) -> dict[str, str]:
        """Describe, by weight, since when the optimizer has had state of active positions only."""
        return {name: f"the optimizer steps its active positions since step {at}" for name, at in self._since.items()}

    def layout_of(self, weight: nn.Parameter) -> Positions | None:
        """Return the positions of which the optimizer has state of a weight; None if it has dense state."""
        place = self._by_id.get(id(weight))
        return None if place is None else place.layout

    def after_step(self, step: int, moved: bool) -> None:
        """Note which weights are stepped by their active positions now."""
        del moved
        for name, place in self._places.items():
            place.taken = None
            if place.layout is not None and name not in self._since:
                self._since[name] = step

    @contextmanager
    def selected(self) -> Generator[Collection[int]]:
        """Within the block, parameters and gradients contain the active positions only; after it, inactive weights are 0.

        Yields:
            The ids of these parameters.
        """
        held: dict[int, tuple[_Place, Tensor, Tensor]] = {}
        if not self._by_id:
            yield held
            return
        try:
            with torch.no_grad():
                for key, place in self._by_id.items():
                    weight = place.weight
                    gradient = weight.grad
                    if gradient is None or (chosen := self._chosen(place, gradient)) is None or place.layout is None:
                        continue
                    values = weight.data
                    held[key] = place, values, gradient
                    weight.data = place.layout.gather(values)
                    weight.grad = chosen
            yield held
        finally:
            with torch.no_grad():
                for place, values, gradient in held.values():
                    assert place.layout is not None
                    values.view(-1).zero_().index_copy_(0, place.layout.flat, place.weight.data)
                    place.weight.data, place.weight.grad, place.taken = values, gradient, None

    def gradients(self) -> list[Tensor]:
        """Return the values of all gradients that the coming step reads."""
        if not self._by_id:
            return self._optimizers.gradients()
        found = list[Tensor]()
        with torch.no_grad():
            for optimizer in self._optimizers.each:
                for group in optimizer.param_groups:
                    for weight in group["params"]:
                        gradient = weight.grad
                        if gradient is None:
                            continue
                        place = self._by_id.get(id(weight))
                        chosen = None if place is None else self._chosen(place, gradient)
                        if chosen is None:
                            chosen = gradient._values() if gradient.is_sparse else gradient
                        found.append(chosen)
        return found

    def _chosen(self, place: _Place, gradient: Tensor) -> Tensor | None:
        """Select the active values of a gradient, once as long as nothing writes to it; None if the weight is stepped dense."""
        if gradient.layout is not torch.strided or not place.weight.is_contiguous():
            self._to_dense(place)
            return None
        taken = place.taken
        if not place.is_current():
            self._look_again(place)
        elif taken is not None and taken[0] is gradient and taken[1] == gradient._version:
            return taken[2]
        if place.layout is None:
            return None
        values = place.layout.gather(gradient)
        place.taken = gradient, gradient._version, values
        return values

    def follow(self, name: str, grown: Tensor) -> None:
        """Let the optimizer's state of a weight follow its mask, which has just changed; inactive and ``grown`` positions are 0 in it."""
        place = self._places.get(name)
        if place is not None and place.layout is not None:
            self._to_dense(place)
            cleared = grown | ~self._program.mask(name)
            self._optimizers.convert(place.weight, lambda value: value.masked_fill_(cleared, 0), tuple(grown.shape))

    def leave(self, names: Iterable[str]) -> None:
        """Give the optimizers dense state of some weights; their next step decides anew."""
        for name in names:
            if name in self._places:
                self._to_dense(self._places[name])

    def finish(self) -> bool:
        """Give the optimizers dense state of all weights for good."""
        self.leave(self._places)
        self._places, self._by_id = {}, {}
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return False

    # --- forms of state

    def _look_again(self, place: _Place) -> None:
        """Select positions by the present mask, and convert the state; dense state stays if the weight is too dense for a gain."""
        self._to_dense(place)
        mask, weight = place.buffers[place.mask], place.weight
        place.seen = (id(mask), mask._version)
        remembered = self._optimizers.state.get(weight, {}).values()
        had_sparse_gradients = any(isinstance(value, Tensor) and value.is_sparse for value in remembered)
        if (
            weight.shape != mask.shape or had_sparse_gradients
        ):  # another shape: the weight is stored compact in the program
            return
        if ones(mask) > place.highest * mask.numel():
            return
        place.layout = Positions(tuple(mask.shape), mask.reshape(-1).nonzero().view(-1))
        self._optimizers.convert(weight, place.layout.gather, place.layout.shape)

    def _to_dense(self, place: _Place) -> None:
        """Convert the state to dense, with 0 at the positions that it lacks."""
        layout, place.layout, place.seen = place.layout, None, None
        if layout is not None:
            self._optimizers.convert(place.weight, layout.scatter, layout.compact_shape)

    # --- saved states

    def _watch(self) -> None:
        """Let optimizers save dense state, and notice when state is loaded."""
        for optimizer in self._optimizers.each:
            self._handles.append(optimizer.register_state_dict_post_hook(self._saved))
            self._handles.append(optimizer.register_load_state_dict_post_hook(self._loaded))

    def state_dict(self) -> dict[str, int]:
        return dict(self._since)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._since = dict(state)

    def _saved(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """Make what an optimizer saves of sparse weights dense."""
        found = {key: place.layout for key, place in self._by_id.items() if place.layout is not None}
        return dense_state(optimizer, state, found)

    def _loaded(self, optimizer: torch.optim.Optimizer) -> None:
        """Loaded state is dense."""
        loaded = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for place in self._places.values():
            if id(place.weight) in loaded:
                place.layout = place.seen = None


def bounds_of(optimizer: torch.optim.Optimizer, mode: str) -> Bounds | None:
    """Return for which weights an optimizer steps active positions only; None: for none."""
    if mode == "never" or not by_position(optimizer):
        return None
    if mode == "always":
        return Bounds(1, 1.0)
    return None if type(optimizer) is torch.optim.SGD else BOUNDS
