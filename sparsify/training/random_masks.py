"""Random masks of the training graph: they are drawn anew at each step, from a generator of their own."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from sparsify.ir import Program, RandomMaskSite
from sparsify.parts.layouts import Layout
from sparsify.passes import Pipeline, RemoveRandomMasks
from sparsify.training.elsewhere import gathered
from sparsify.training.mechanism import Mechanism

SALT = 0x9E3779B97F4A7C15
"""Added to the seed of masks. Weights initialised with the same seed use the same random stream; masks drawn from it again would
keep the weights with the highest values, all with the same sign."""


class RandomMasks(Mechanism):
    """The random masks of a program; all weights are visible until masks are drawn.

    A mask has the shape of the dense weight in either form, so that the same seed draws the same masks.

    Args:
        program: the program.
        seed: seed of the generator.
        layouts: the layouts of the weights that are stored compact, a mapping that follows them.

    Attributes:
        sites: the random masks of the train phase.
        generator: generator on the program's device; a checkpoint needs its state. The masks themselves are buffers of the program.
    """

    key = "draws"

    def __init__(self, program: Program, *, seed: int, layouts: Mapping[str, Layout]) -> None:
        self.sites: tuple[RandomMaskSite, ...] = program.random_mask_sites()
        self.generator = torch.Generator(device=next(program.parameters()).device).manual_seed(seed)
        self.active = bool(self.sites)
        self._program, self._layouts = program, layouts

    def __contains__(self, weight: str) -> bool:
        return any(site.weight == weight for site in self.sites)

    def visible(self) -> dict[str, Tensor]:
        """Return the mask buffers by weight name; True where the step sees the weight."""
        return {site.weight: self._program.get_buffer(site.visible) for site in self.sites}

    def draw(self) -> None:
        """Draw every mask anew, in place."""
        for site in self.sites:
            self._program.get_buffer(site.visible).bernoulli_(1.0 - site.rate, generator=self.generator)

    def start(self) -> None:
        self.draw()

    def after_step(self, step: int, moved: bool) -> None:
        """Draw the masks of the next step."""
        del step, moved
        self.draw()

    def finish(self) -> bool:
        """Remove random masks from the program."""
        found = bool(self.sites)
        if found:
            Pipeline((RemoveRandomMasks(),)).apply(self._program)
            self.sites = ()
        return found

    def state_dict(self) -> Tensor:
        return self.generator.get_state()

    def load_state_dict(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())

    @contextmanager
    def kept(self) -> Generator[None]:
        """Restore the masks after the block; the generator keeps its new state."""
        before = {name: value.clone() for name, value in self.visible().items()}
        try:
            yield
        finally:
            for name, value in self.visible().items():
                value.copy_(before[name])

    @contextmanager
    def hidden_still(self) -> Generator[None]:
        """Restore hidden weights after the block, whatever changes weights inside it."""
        hidden = {name: ~gathered(self._layouts, name, value) for name, value in self.visible().items()}
        values = {
            name: self._program.get_parameter(name).detach().masked_select(where) for name, where in hidden.items()
        }
        try:
            yield
        finally:
            with torch.no_grad():
                for name, where in hidden.items():
                    self._program.get_parameter(name).masked_scatter_(where, values[name])
