"""What a run measures of out-of-distribution inputs, and which score its file gets where the recipe leaves the choice to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sparsify.calibration import Choice, choose_outlier_score, evaluate, outlier_scores
from sparsify.calibration.outliers import check_mixable
from sparsify.figures.classifier import ood_quality
from sparsify.figures.ood_scores import SCORES
from sparsify.ir import Program
from sparsify.loading import Data
from sparsify.runs.further_heads import CHOSEN
from sparsify.runs.recipe import Recipe

KNOWN = {"msp": "maximum probability", "energy": "energy", "energy:1": "energy"}
"""Heads whose score has a name of its own among the figures."""
TEST = "test"


def ood_rows(program: Program, outputs: Mapping[str, Tensor], data: Data) -> dict[str, Any]:
    """Measure how well every score tells test inputs from each set of out-of-distribution inputs; empty without such sets.

    Args:
        program: calibrated.
        outputs: of the program, on the test set.
        data: of the run.
    """
    if not data.ood:
        return {}
    found = outlier_scores(program, data.train, data.validation, {**data.ood, TEST: data.test})
    found = {spec: scores for spec, scores in found.items() if KNOWN.get(spec) not in SCORES}
    return {
        name: ood_quality(
            outputs, evaluate(program, samples), {spec: (one[TEST], one[name]) for spec, one in found.items()}
        )
        for name, samples in data.ood.items()
    }


def check_choice(recipe: Recipe, data: Data) -> None:
    """Refuse a recipe that leaves the choice of a score to the run, which can make no outliers for it.

    Raises:
        TrainingError: If it does.
    """
    if CHOSEN in recipe.heads and not data.ood_validation:
        check_mixable(data.validation)


def with_choice(recipe: Recipe, program: Program, data: Data) -> tuple[Recipe, Choice | None]:
    """Replace ``ood-auto`` among the heads of a recipe by the score that tells validation samples best from outliers.

    Args:
        recipe: of the run.
        program: trained.
        data: of the run; neither its test part nor the sets of its report are read.
    """
    if CHOSEN not in recipe.heads:
        return recipe, None
    choice = choose_outlier_score(program, data.train, data.validation, data.ood_validation)
    heads = tuple(choice.chosen if text == CHOSEN else text for text in recipe.heads)
    return dataclasses.replace(recipe, heads=heads), choice  # type: ignore[type-var]
