"""``compact-grouped``: store weights with grouped masks as their active positions only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparsify.ir import PHASES, Program, Stage
from sparsify.ir.compaction import choose_layouts, compact, grouped_patterns, obstacles
from sparsify.ir.sites import mask_names, positions_of
from sparsify.parts.layouts import layout_of
from sparsify.parts.patterns import Grouped
from sparsify.passes.base import Effect, Kept, Pass, PassLog, Preserves
from sparsify.passes.options import option

ROUNDED = Kept(Preserves.NUMERICALLY, Preserves.NUMERICALLY)


@dataclass(frozen=True)
class CompactGrouped(Pass):
    """Store masked weights [O, I, *K] whose groups of outputs read k inputs each as [O, k, *K], and compute with those.

    Outputs and gradients stay the same up to rounding. Training does this by itself (`sparsify.attach`). `Program.clone` undoes it, and so
    do all that clone a program: pipelines, exports and files. State dicts hold dense weights.
    """

    name: ClassVar = "compact-grouped"
    requires: ClassVar = (Stage.MASKED,)
    effects: ClassVar = Effect.GRAPH | Effect.NAMES | Effect.WEIGHTS
    takes_compact: ClassVar = True

    form: str = option(
        "always",
        "which weights become compact: always, all that can be; or auto, those for which a training step is predicted to be faster",
        choices=("always", "auto"),
    )

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return dict.fromkeys(PHASES, ROUNDED)

    def run(self, program: Program) -> PassLog:
        log, reasons = PassLog(self.name), obstacles(program)
        able = {name: pattern for name, pattern in grouped_patterns(program).items() if name not in reasons}
        chosen = choose_layouts(program, able, positions_of(program) if self.form == "auto" else None)
        for name in mask_names(program):
            if name in chosen:
                log.change(name)
            else:
                log.skip(name, reasons.get(name) or _why_masked(program.mask(name), able[name]))
        compact(program, chosen)
        return log


def _why_masked(mask: Tensor, pattern: Grouped) -> str:
    """Return why a weight was not chosen although nothing but its mask speaks against it."""
    layout = layout_of(mask, pattern)
    if layout is None:
        return "its groups do not each read the same number of inputs, fewer than all"
    return f"with {layout.inputs.shape[1]} of {layout.shape[1]} inputs, a step is predicted to be no faster"
