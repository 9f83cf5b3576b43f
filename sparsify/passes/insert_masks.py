"""``insert-masks``: give each matched weight a mask."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, fx

from sparsify.errors import PassError
from sparsify.ir import PHASES, Program, Stage, WeightSite, surgery
from sparsify.ir.channels import channel_sets, written_together
from sparsify.ir.nodes import apply_mask
from sparsify.ir.sites import parameter_nodes
from sparsify.parts.allocation import ALLOCATIONS, Layer, needs_gradient
from sparsify.parts.patterns import Pattern, Unstructured, parse_pattern
from sparsify.parts.patterns.grouped import Grouped, select_together
from sparsify.passes.base import CHANGED, UNCHANGED, Effect, Kept, Pass, PassLog
from sparsify.passes.options import Range, option

SCORES = ("magnitude", "random")


def _without_gradients(name: str) -> None:
    """Refuse the name of an allocation that ranks by gradients."""
    if needs_gradient(ALLOCATIONS[name]):
        free = ", ".join(other for other, allocation in ALLOCATIONS.items() if not needs_gradient(allocation))
        raise PassError(
            f"{name} ranks by gradients of the loss, which only a pruning during training has. Choose one of: {free}; or give {name} to a "
            f"method that prunes, such as gmp."
        )


@dataclass(frozen=True)
class InsertMasks(Pass):
    """Multiply each matched weight by a mask buffer ``<weight>_mask``; all ones unless a density is given.

    With ``density``, masks keep the highest-scoring positions, split over the weights by ``allocation`` with an exact
    integer budget. Weights themselves are not changed.

    Raises:
        PassError: If a glob of ``weights`` or ``keep-dense`` matches nothing, or an option has a wrong type or value.
        PatternError: If the pattern is misspelt, or does not fit a matched weight.
        AllocationError: If the density cannot be met.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> program = sp.trace(torch.nn.Linear(8, 4), torch.rand(2, 8))
        >>> masked = sp.Pipeline.parse("insert-masks{pattern=nm:2:4 density=0.5}")(program)
        >>> masked.mask("weight").sum(1).tolist()
        [4, 4, 4, 4]
    """

    name: ClassVar = "insert-masks"
    requires: ClassVar = (Stage.TRACED,)
    ensures: ClassVar = Stage.MASKED
    effects: ClassVar = Effect.GRAPH | Effect.NAMES

    weights: tuple[str, ...] = option((), "globs of weights to mask; all that can be sparse by default")
    keep_dense: tuple[str, ...] = option((), "globs of weights to leave without a mask")
    keep_frozen: bool = option(False, "do not mask weights that are not trained (requires_grad is False)")
    pattern: str = option(
        "unstructured",
        "which positions may be active together: unstructured, nm:2:4, block:4x1, grouped:64",
        reads=parse_pattern,
    )
    density: float | None = option(
        None, "active fraction of the masked weights; all ones when not given", within=Range(0, 1, open_low=True)
    )
    score: str = option(
        "magnitude", "how positions are ranked when a density is given: magnitude, or random", choices=SCORES
    )
    allocation: str = option(
        "global_magnitude", "how the density is split over weights", choices=ALLOCATIONS, reads=_without_gradients
    )

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return dict.fromkeys(PHASES, UNCHANGED if self.density is None else CHANGED)

    def run(self, program: Program) -> PassLog:
        log, pattern = PassLog(self.name), parse_pattern(self.pattern)
        sites = self._matched(program, log, pattern)
        for site in sites:
            pattern.check(site.shape, site.name)
        patterns: dict[str, Pattern] = {site.name: pattern.fitted(site.shape) for site in sites}
        for name, reason in _order_is_fixed(program, patterns).items():
            patterns[name] = cast(Grouped, patterns[name]).contiguous()
            log.note(name, f"groups are of consecutive outputs: {reason}")
        masks = self._masks(program, patterns)
        for site in sites:
            surgery.add_state(program, f"{site.name}_mask", masks[site.name])
            log.change(site.name)
        for phase in PHASES:
            read: dict[str, fx.Node] = {}
            for node, weight in list(parameter_nodes(program, phase)):
                if weight in patterns:
                    anchor = node.next
                    if weight not in read:
                        read[weight] = surgery.new_state_node(program, phase, f"{weight}_mask", before=anchor)
                    mask = read[weight]
                    masked = surgery.call_after(
                        program, phase, mask if mask.prev is node else anchor.prev, apply_mask,
                        (node, mask, str(patterns[weight])), spec=node.meta["spec"],
                    )  # fmt: skip
                    surgery.reroute(node, masked)
        return log

    def _matched(self, program: Program, log: PassLog, pattern: Pattern) -> list[WeightSite]:
        sites = program.maskable()
        for kind, globs in (("weights", self.weights), ("keep-dense", self.keep_dense)):
            for glob in globs:
                if not any(fnmatch.fnmatchcase(site.name, glob) for site in sites):
                    raise PassError(
                        f"{self.name}: {kind}={glob!r} matches no weight. Weights: {', '.join(site.name for site in sites)}."
                    )
        matched: list[WeightSite] = []
        for site in sites:
            asked = any(fnmatch.fnmatchcase(site.name, glob) for glob in self.weights)
            if any(fnmatch.fnmatchcase(site.name, glob) for glob in self.keep_dense):
                log.skip(site.name, "asked to stay dense")
            elif self.keep_frozen and not program.get_parameter(site.name).requires_grad:
                log.skip(site.name, "frozen (requires_grad is False)")
            elif self.weights and not asked:
                log.skip(site.name, "not among the weights asked for")
            elif site.skip and not (asked and site.possible):
                log.skip(site.name, site.skip)
            elif not asked and (reason := _unsuited(site, pattern)):
                log.skip(site.name, f"{pattern} does not suit it: {reason}")
            else:
                matched.append(site)
        if not matched:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in log.skipped[:6])
            raise PassError(
                f"{self.name}: no weight of {program.name!r} is left to mask ({reasons}). Loosen weights or keep-dense, or choose another "
                f"pattern."
            )
        return matched

    def _masks(self, program: Program, patterns: dict[str, Pattern]) -> dict[str, Tensor]:
        weights = {name: program.get_parameter(name).detach() for name in patterns}
        if self.density is None:
            return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        layers = {
            name: Layer(
                shape=tuple(weight.shape),
                unit=patterns[name].unit_size(tuple(weight.shape)),
                fixed_density=patterns[name].fixed_density(tuple(weight.shape)),
                weight=weight,
            )
            for name, weight in weights.items()
        }
        budgets = ALLOCATIONS[self.allocation](layers, self.density)
        generator = torch.Generator().manual_seed(0)
        scores = {
            name: weight.abs() if self.score == "magnitude" else torch.rand(weight.shape, generator=generator)
            for name, weight in weights.items()
        }
        masks: dict[str, Tensor] = {}
        for names in written_together(program, tuple(patterns)):
            masks |= select_together({n: patterns[n] for n in names}, {n: scores[n] for n in names}, budgets)
        return {name: masks[name] for name in patterns}


def _order_is_fixed(program: Program, patterns: Mapping[str, Pattern]) -> dict[str, str]:
    """Find the weights with a learned grouping whose outputs cannot be reordered for free; returns the reason by weight."""
    learned = {name: p for name, p in patterns.items() if isinstance(p, Grouped) and p.is_learned}
    if not learned:
        return {}
    reasons = dict.fromkeys(learned, "what reads its outputs is not known")
    for channels in channel_sets(program):
        members = [name for name in channels.writers if name in learned]
        chunked = [n for n, _ in channels.readers if isinstance(p := patterns.get(n), Grouped) and p.columns > 1]
        reason = channels.pinned
        if reason is None and len({learned[name].rows for name in members}) > 1:
            reason = "they are added to those of a layer with groups of another size"
        if reason is None and chunked:
            reason = f"{chunked[0]} keeps them in chunks"
        for name in members:
            if reason is None:
                del reasons[name]
            else:
                reasons[name] = reason
    return reasons


def _unsuited(site: WeightSite, pattern: Pattern) -> str | None:
    """Return why the pattern leaves a weight dense, or None if it applies."""
    if site.kind == "conv-transpose" and not isinstance(pattern, Unstructured):
        return "a transposed convolution has its inputs in the first dimension"
    reason = pattern.unsuited(site.shape)
    if isinstance(pattern, Grouped) and reason is None:
        if site.groups > 1:
            return "the convolution is grouped already"
        if site.kind == "recurrent":
            return "no grouped form of a recurrent layer is known"
        if site.kind not in ("linear", "conv") or not site.direct:
            return "its outputs are not known to be the first dimension; write it as a linear layer"
    return reason
