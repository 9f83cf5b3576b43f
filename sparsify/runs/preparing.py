"""The passes of a recipe, which rewrite the model before a method does."""

from __future__ import annotations

from sparsify.errors import RecipeError
from sparsify.ir import Program, Stage
from sparsify.passes import Pipeline

TRAINED = (Stage.TRACED, Stage.MASKED)


def check_passes(passes: str) -> None:
    """Check the pipeline of a recipe without a program.

    Raises:
        PassError: If a pass or an option is unknown, or a value is not allowed.
        RecipeError: If the pipeline makes a program that cannot be trained.
    """
    for step in Pipeline.parse(passes).passes if passes.strip() else ():
        if step.ensures not in (None, *TRAINED):
            raise RecipeError(
                f"model.passes = {passes!r}: {step.name} ends training. Leave it out: a run folds masks and deploys at its end."
            )


def prepared(program: Program, passes: str) -> Program:
    """Return the program as the passes of a recipe rewrite it.

    Raises:
        SparsifyError: If a pass refuses the program.
    """
    return Pipeline.parse(passes)(program) if passes.strip() else program
