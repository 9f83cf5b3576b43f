"""Infers the task of a recipe that says ``auto``: the task that fits data and model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from sparsify.errors import SparsifyWarning
from sparsify.ir import trace
from sparsify.ir.dimensions import parsed
from sparsify.ir.evaluation import output_shape, outputs_of
from sparsify.loading import Data, load_model
from sparsify.runs.artefacts import read_data
from sparsify.runs.recipe import AUTO, Recipe
from sparsify.runs.saved import is_saved, load_saved
from sparsify.tasks import Task, infer


def with_task(recipe: Recipe, on_decode: Callable[[int, int], None] | None = None) -> Recipe:
    """Set the task of a recipe to the one that fits its data and its model; a recipe that names a task is returned unchanged.

    The model is traced for this, and again for the task that was found. The data are also read twice, unless the call is within
    `sparsify.loading.once.read_once`.

    Args:
        recipe: a resolved recipe.
        on_decode: called while images are decoded, with the number of decoded images and of all images.

    Raises:
        TaskError: If no task or several tasks fit; the message names them and says how to choose.
        SparsifyError: If data or model cannot be read.
    """
    if recipe.task != AUTO:
        return recipe
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparsifyWarning)  # they are said when the run reads both again
        found = _fitting(recipe, read_data(recipe, on_decode))
    named = dataclasses.replace(recipe, task=found.name)  # type: ignore[type-var]
    named.build_task()  # raises where other keys do not fit it
    return named


def _fitting(recipe: Recipe, data: Data) -> Task:
    example = data.example()
    if is_saved(recipe):
        program = load_saved(recipe, data)
    else:
        torch.manual_seed(recipe.seed)
        weights = None if recipe.weights is None else Path(recipe.weights)
        model = load_model(recipe.model, weights=weights, trust_pickle=recipe.trust_pickle)
        dynamic, limits = parsed(recipe.dynamic)
        outputs = {} if recipe.logits is None else {"logits": recipe.logits}
        program = trace(model, example, dynamic=dynamic, limits=limits, outputs=outputs, classes=data.classes or None)
    with torch.no_grad():
        found = outputs_of(program.eval(), example)
    name = next(name for name in ("logits", "prediction") if name in found)
    return infer(data.train.targets, output_shape(program, name, found[name]))
