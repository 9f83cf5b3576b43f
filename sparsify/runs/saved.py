"""Uses a saved program as the model of a run: training continues from its weights, and from its masks if it has some."""

from __future__ import annotations

from pathlib import Path

import torch

from sparsify.errors import DataError, RecipeError, TraceError
from sparsify.ir import Program, Stage
from sparsify.ir.evaluation import outputs_of
from sparsify.loading import Data
from sparsify.runs.recipe import Recipe

SUFFIX = ".sparsify"


def is_saved(recipe: Recipe) -> bool:
    """Return whether the model of a recipe is a saved program."""
    return recipe.model.endswith(SUFFIX)


def load_saved(recipe: Recipe, data: Data) -> Program:
    """Load the saved program that a recipe names as its model.

    Args:
        recipe: a recipe that leaves the keys for making and tracing a model at their defaults.
        data: data that the program should accept.

    Raises:
        LoadError: If the file is missing or is not a program.
        RecipeError: If another key does not go with a saved program, or its masks are folded.
        DataError: If the program does not accept the data.
    """
    given = {
        "weights": recipe.weights is not None,
        "logits": recipe.logits is not None,
        "dynamic": bool(recipe.dynamic),
    }
    for key in (key for key, is_given in given.items() if is_given):
        raise RecipeError(f"the program {recipe.model} has weights, outputs and sizes of its own. Leave {key} out.")
    program = Program.load(Path(recipe.model)).eval()
    if program.stage in (Stage.FOLDED, Stage.DEPLOYED):
        raise RecipeError(
            f"the program {recipe.model} is made for deployment: its masks are folded into the weights. Give the program.sparsify of a run."
        )
    if program.masks() and recipe.baseline:
        raise RecipeError(
            f"the program {recipe.model} has masks, and a dense baseline cannot start from it. Leave baseline out."
        )
    try:
        with torch.no_grad():
            outputs_of(program, data.example())
    except TraceError as error:
        raise DataError(f"the program {recipe.model} does not take these data: {error}") from error
    return program
