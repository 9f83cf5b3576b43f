"""``compact-grouped``: store weights with grouped masks as their active positions only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparsify.ir import PHASES, Program, Stage
from sparsify.ir.compaction import compact, obstacles
from sparsify.ir.sites import masks_and_patterns, positions_of
from sparsify.parts.compact_times import pays
from sparsify.parts.layouts import layout_of
from sparsify.parts.patterns import Grouped, parse_pattern
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
        log, chosen, reasons = PassLog(self.name), {}, obstacles(program)
        uses = positions_of(program)
        for name, (mask, spelling) in masks_and_patterns(program).items():
            if name in reasons:
                log.skip(name, reasons[name])
                continue
            value = program.get_buffer(mask)
            pattern = parse_pattern(spelling).fitted(tuple(value.shape))
            layout = layout_of(value, pattern) if isinstance(pattern, Grouped) else None
            if layout is None:
                log.skip(name, "its groups do not each read the same number of inputs, fewer than all")
                continue
            kept = layout.inputs.shape[1]
            if self.form == "auto" and not pays(layout.shape, kept / layout.shape[1], uses[name], layout.rows):
                log.skip(name, f"with {kept} of {layout.shape[1]} inputs, a step is predicted to be no faster")
                continue
            chosen[name] = layout
            log.change(name)
        compact(program, chosen)
        return log
