"""The passes of the package as their contract is tried, and the table of what they do: ``python -m tests.contracts.tried_passes``."""

from __future__ import annotations

from sparsify.passes import PASSES, Pass, Pipeline
from sparsify.passes.contract import CASES as AWKWARD
from sparsify.passes.contract import SETUPS, Case, Row, check_pass, table
from tests.cases import CASES

VARIANTS = (
    "insert-masks{density=0.5}",
    "insert-masks{pattern=grouped:16:learned density=0.5}",
    "insert-random-masks{rescale=true}",
    "widen-classifier{score=odds}",
    "attach-calibration-head{kind=vector}",
    "attach-calibration-head{kind=matrix}",
    "lower-grouped-conv{form=grouped}",
    "lower-grouped-linear{form=grouped}",
    "lower-grouped-linear{sizes=N=4096}",
    "order-outputs{sizes=N=4096}",
    "compact-grouped{form=auto}",
    "spiking{steps=1 reset=hard surrogate=triangle learn=both}",
)
"""Options with which a pass declares or does something else than without; tried on the awkward models."""

GROUPED = "insert-masks{pattern=grouped:32 density=0.25 allocation=uniform}"
AFTER = {
    "compact-grouped": (
        GROUPED,
        "insert-masks{pattern=grouped:32:learned density=0.25 allocation=uniform} | insert-gradient-taps",
        "insert-masks{pattern=grouped:2 density=0.5 allocation=uniform} | insert-gradient-taps | lower-masks",
    ),
    "compact-grouped{form=auto}": (GROUPED,),
    "set-steps": ("spiking{steps=2}", "insert-masks{density=0.5} | spiking{steps=3} | fold-masks | deploy"),
    "average-steps": ("spiking{steps=2}", "insert-masks{density=0.5} | spiking{steps=3 learn=both}"),
}
"""What comes before passes that do nothing after the usual pipelines."""


def tried() -> list[tuple[Pass, tuple[Case, ...]]]:
    """Each registered pass with all models, then each variant with the awkward ones."""
    variants = [step for text in VARIANTS for step in Pipeline.parse(text).passes]
    return [(cls(), (*AWKWARD, *CASES)) for cls in PASSES.values()] + [(step, AWKWARD) for step in variants]


def setups(step: Pass) -> tuple[str, ...]:
    """What comes before a pass: all pipelines of the stage that it requires; the last one of each, where it takes every stage."""
    if str(step) in AFTER:
        return AFTER[str(step)]
    if len(step.requires) == len(SETUPS):
        return tuple(SETUPS[stage][-1] for stage in step.requires)
    return tuple(text for stage in step.requires for text in SETUPS[stage])


def rows() -> list[Row]:
    """What every pass does on every model."""
    return [row for step, cases in tried() for row in check_pass(step, cases=cases, after=setups(step))]


if __name__ == "__main__":
    print(table(rows()))
