"""Trains weights with grouped masks at the cost of their active positions: they are stored compact while a run lasts.

The parameter stays the same object, so optimizers, schedulers and loops need no change. Optimizers hold compact state for a compact weight
and save it dense. A weight's mask, its shape and a cost model decide whether it is stored compact; the choice is part of the state of a
run, because the two forms differ in rounding.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsify.errors import TrainingWarning
from sparsify.ir import GradientTap, Program
from sparsify.ir.compaction import choose_layouts, compact, expand, grouped_patterns, note_shapes, obstacles, relayout
from sparsify.ir.sites import layouts, mask_names, positions_of
from sparsify.parts.layouts import Layout, layout_of
from sparsify.parts.patterns import Grouped
from sparsify.training.active_steps import ActiveSteps
from sparsify.training.inactive import clear_inactive
from sparsify.training.mechanism import Mechanism
from sparsify.training.optimizers import Optimizers, by_position, dense_state
from sparsify.training.zeros import Zeros

Compact = Literal["auto", "always", "never"]
COPIED = "copy.deepcopy copied the program, and an average may follow its parameters (program.clone() does not count)"


class CompactWeights(Mechanism):
    """Stores weights of a program compact during a run, and converts the optimizers' state with them.

    Args:
        program: the program of the run.
        optimizers: the optimizers of the run.
        active: steps weights that are stored dense; it follows their masks.
        mode: ``auto`` stores a weight compact if that is predicted to be faster, ``always`` if it is possible; ``never`` stores none.
        last: the last step of the run; weights are dense again after it.

    Attributes:
        masked: the reasons, by weight, why masked weights are never stored compact.
        taps: the taps of the program, by weight.
        layouts: the layouts of the weights that are stored compact, by weight; it follows them.
    """

    key = "compact"

    def __init__(
        self, program: Program, optimizers: Optimizers, active: ActiveSteps, *, mode: Compact, last: int
    ) -> None:
        self._program, self._optimizers, self._active, self._last = program, optimizers, active, last
        self._mode: Compact = mode
        self._zeros: Zeros | None = None
        self._patterns: dict[str, Grouped] = {}
        self._positions: dict[str, int] | None = None
        self.layouts: dict[str, Layout] = {}
        self._since: dict[str, int] = {}
        self._wanted: list[str] | None = None
        self._loaded = False
        self._handles: list[Any] = []
        self.masked: dict[str, str] = {}
        self.taps: dict[str, GradientTap] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> CompactWeights:
        made = object.__new__(type(self))
        memo[id(self)] = made
        for name, value in self.__dict__.items():
            made.__dict__[name] = [] if name == "_handles" else copy.deepcopy(value, memo)
        self._program.deep_copied = made._program.deep_copied = False  # the copy has a trainer of its own
        if self._handles:
            made._watch()
            made._wanted = list(self.layouts)
            made._notice()
            made.settle()
        return made

    # --- the run

    def prepare(self, zeros: Zeros) -> None:
        """Find the weights that can be stored compact. ``zeros`` keeps inactive weights at 0; it leaves out compact ones."""
        self._zeros = zeros
        self._program.deep_copied = False
        reason, reasons = _reason(self._optimizers, self._mode), obstacles(self._program)
        patterns = grouped_patterns(self._program)
        for name in mask_names(self._program):
            found = reasons.get(name) or reason or _hooked(self._program.get_parameter(name), zeros)
            if found is None:
                self._patterns[name] = patterns[name]
            else:
                self.masked[name] = found
        if self._patterns and self._mode == "auto":
            self._positions = positions_of(self._program)
        self.active = bool(self._patterns)

    def start(self) -> None:
        if self.active:
            self._watch()
            self._choose(0)

    def after_step(self, step: int, moved: bool) -> None:
        """Compact the weights that have become sparse enough; store all weights dense after the last step."""
        del moved
        if step >= self._last:
            self._end()
        elif self._program.deep_copied and self._patterns:
            self._stay_dense()
        elif len(self.layouts) < len(self._patterns):
            self._choose(step)

    def finish(self) -> bool:
        self._end()
        return False

    def _end(self) -> None:
        self.settle()
        self._expand([*self.layouts])
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _stay_dense(self) -> None:
        """Store all weights dense from now on: a copy of the program has dense ones, and an average would mix positions."""
        had = list(self.layouts)
        self._end()
        self.masked |= dict.fromkeys(self._patterns, COPIED)
        self._patterns, self._since = {}, {}
        if had:
            warnings.warn(
                f"copy.deepcopy copied program {self._program.name!r} while {', '.join(had[:4])} were stored compact. They are dense from "
                f"now on, so that an average can follow them; steps take longer. For a copy that nothing follows, use program.clone().",
                TrainingWarning,
                stacklevel=5,
            )

    @property
    def forms(self) -> dict[str, str]:
        """How training stores each masked weight: compact, and since which step, or masked, and why."""
        slower = "a step with it compact is predicted to be no faster"
        found = {name: f"masked: {reason}" for name, reason in self.masked.items()}
        for name in self._patterns:
            if name in self._since:
                found[name] = f"compact since step {self._since[name]}"
            else:
                whole = bool(self._program.mask(name)[0].all())
                found[name] = f"masked: {'its groups read all inputs' if whole else slower}"
        stepped = self._active.forms()
        return {name: f"{form}; {stepped[name]}" if name in stepped else form for name, form in found.items()}

    # --- what rounds ask

    def dense(self, name: str) -> Tensor:
        """Return the values of a weight [O, I, *K], 0 where inactive."""
        weight = self._program.get_parameter(name).detach()
        layout = self.layouts.get(name)
        return weight if layout is None else layout.scatter(weight)

    def follow(self, name: str, grown: Tensor) -> None:
        """Adapt a weight and the optimizers' state for it to its mask, which has just changed.

        Args:
            name: the weight.
            grown: bool [O, I, *K], the positions that were activated. They start at 0, also those that were active before.
        """
        old = self.layouts.get(name)
        new = None if old is None else layout_of(self._program.mask(name), self._patterns[name])
        if old is None or new is None:
            self._expand([name])
            clear_inactive(self._program, self._optimizers, name, grown=grown)
            self._active.follow(name, grown)
            return
        weight = self._program.get_parameter(name)
        gradient = None if weight.grad is None else new.gather(old.scatter(weight.grad))
        self._move_state(name, lambda value: new.gather(old.scatter(value).masked_fill_(grown, 0)), old.compact_shape)
        relayout(self._program, name, new, old.scatter(weight.detach()).masked_fill_(grown, 0))
        weight.grad = gradient
        self.layouts[name] = new

    def clear_inactive(self, name: str) -> None:
        """Set inactive weights and their gradients to 0; a compact weight has no inactive positions."""
        if name not in self.layouts:
            clear_inactive(self._program, self._optimizers, name)

    def note_shapes(self) -> None:
        """Note the new shapes of compact weights in the graphs."""
        if self.layouts:
            note_shapes(self._program)

    # --- changes of form

    def _choose(self, step: int) -> None:
        """Compact the weights that have become sparse enough by ``step``."""
        dense = {name: pattern for name, pattern in self._patterns.items() if name not in self.layouts}
        chosen = choose_layouts(self._program, dense, self._positions)
        self._since |= dict.fromkeys(chosen, step + 1)
        self._compact(chosen)

    def _compact(self, chosen: Mapping[str, Layout]) -> None:
        if not chosen:
            return
        gradients = dict[str, Tensor]()
        for name in chosen:
            weight = self._program.get_parameter(name)
            if weight.grad is not None:
                gradients[name] = chosen[name].gather(weight.grad)
            self._move_state(name, chosen[name].gather, chosen[name].shape)
            self.layouts[name] = chosen[name]
        compact(self._program, chosen)
        self._put_gradients(gradients)

    def _expand(self, names: Iterable[str]) -> None:
        """Store weights dense again, with the positions of their layouts."""
        chosen = [name for name in names if name in self.layouts]
        if not chosen:
            return
        gradients = dict[str, Tensor]()
        for name in chosen:
            layout, weight = self.layouts.pop(name), self._program.get_parameter(name)
            if weight.grad is not None:
                gradients[name] = layout.scatter(weight.grad)
            self._move_state(name, layout.scatter, layout.compact_shape)
        expand(self._program, chosen)
        self._put_gradients(gradients)

    def find_taps(self) -> None:
        """Look up the taps of the program: a copy of a program has its own, and a weight gets another tap when its form changes."""
        self.taps = self._program.taps()

    def _put_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            self._program.get_parameter(name).grad = gradient
        self.find_taps()
        self._follow_zeros(self.layouts)

    def _follow_zeros(self, compact: Container[str]) -> None:
        if self._zeros is not None:
            self._zeros.leave_out(compact)

    def _move_state(self, name: str, moved: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        """Apply a change of layout to the tensors of optimizer state that have one value per position of a weight, of this shape."""
        self._active.leave([name])
        self._optimizers.convert(self._program.get_parameter(name), moved, shape)

    # --- saved states

    def _watch(self) -> None:
        """Let optimizers save dense state, and notice when a state is loaded."""
        for handle in self._handles:
            handle.remove()
        self._handles = [self._program.register_load_state_dict_post_hook(self._notice)]
        for optimizer in self._optimizers.each:
            self._handles.append(optimizer.register_state_dict_post_hook(self._saved))
            self._handles.append(optimizer.register_load_state_dict_post_hook(self._notice))

    def _notice(self, *given: Any) -> None:
        """Note that a state was loaded; the states of a run may be loaded in any order."""
        del given
        self._loaded = True
        self._arrange()

    def _saved(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """Make what an optimizer saves of compact weights dense."""
        self.settle()
        named = {id(self._program.get_parameter(name)): layout for name, layout in self.layouts.items()}
        return dense_state(optimizer, state, named)

    def _arrange(self) -> None:
        """Store the same weights compact as the loaded run, as far as their masks have been loaded."""
        now = layouts(self._program)
        if self._wanted is not None:
            expand(self._program, [name for name in now if name not in self._wanted])
            missing = {
                name: self._patterns[name] for name in self._wanted if name in self._patterns and name not in now
            }
            if chosen := choose_layouts(self._program, missing, None):
                compact(self._program, chosen)
            now = layouts(self._program)
        self.find_taps()
        self._follow_zeros(now)

    def settle(self) -> None:
        """Convert the optimizers' state to the current layouts of the program if states were loaded since the last call."""
        if not self._loaded:
            return
        self._loaded = False
        self._arrange()
        self._wanted, now = None, layouts(self._program)
        for name in self._patterns:
            old, new = self.layouts.get(name), now.get(name)
            if old is not None and old.inputs is not (new.inputs if new is not None else None):
                self._move_state(name, old.scatter, old.compact_shape)
            if new is not None:
                self._move_state(name, new.gather, new.shape)
        self.layouts.clear()
        self.layouts.update(now)

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        return {"compact": list(self.layouts), "since": dict(self._since)}

    def load_state_dict(self, state: Any) -> None:
        if self.active:
            self._wanted, self._since = list(state["compact"]), dict(state["since"])
            self._notice()


def _reason(optimizers: Optimizers, mode: Compact) -> str | None:
    if mode == "never":
        return "it was asked for (compact = never)"
    other = next((type(o).__name__ for o in optimizers.each if not by_position(o)), None)
    return None if other is None else f"{other} may depend on the shapes of weights"


def _hooked(weight: nn.Parameter, zeros: Zeros) -> str | None:
    """Return a reason if something besides this package looks at the gradients of a weight."""
    known = zeros.hooks_of(weight)
    others = [key for key in (weight._backward_hooks or {}) if key not in known]
    return "a hook of the loop reads its gradient" if others else None
