"""Traces a model for inspection: on data, or on inputs described by text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparsify.errors import RecipeError, TaskError
from sparsify.ir import Program, trace
from sparsify.ir.dimensions import parsed
from sparsify.loading import load_model
from sparsify.loading.inputs import example_inputs
from sparsify.loading.once import read_once
from sparsify.methods import static_random
from sparsify.runs.artefacts import recipe_data
from sparsify.runs.inferring import with_task
from sparsify.runs.preflight import traced
from sparsify.runs.recipe import AUTO, parse_recipe
from sparsify.tasks import kind
from sparsify.training import attach


def traced_on_data(
    model: str,
    data: str,
    *,
    target: str | None = None,
    weights: Path | None = None,
    trust_pickle: bool = False,
    logits: str | None = None,
    dynamic: Sequence[str] = (),
    task: str | None = None,
) -> Program:
    """Trace a model on the first samples of data, as a run does.

    Args:
        model, data, weights, trust_pickle, dynamic, task: as in a recipe.
        target: columns of a table to predict, separated by commas.
        logits: position or key of the output that the task reads.

    Raises:
        RecipeError: If the task is custom, because its loss is unknown here.
        SparsifyError: If the model or the data cannot be used, or do not fit.
    """
    if task == "custom":
        raise RecipeError(
            "a custom task is traced without its loss: give the shapes of the inputs by --input, in place of --data."
        )
    given: dict[str, Any] = {
        "model": model, "data": data, "weights": weights and str(weights), "trust_pickle": trust_pickle, "task": task,
    }  # fmt: skip
    if target:  # some rows of a table are kept for testing; which ones does not matter here
        given |= {"target": target, "test_holdout": 0.15}
    if dynamic:
        given["dynamic"] = tuple(dynamic)
    if logits is not None:
        given["logits"] = int(logits) if logits.isdigit() else logits
    with read_once():
        recipe = with_task(parse_recipe(None, given))
        found = recipe_data(recipe)
    return traced(recipe, found)


def traced_without_data(
    model: str,
    inputs: Sequence[str],
    *,
    weights: Path | None = None,
    trust_pickle: bool = False,
    logits: str | None = None,
    dynamic: Sequence[str] = (),
    task: str | None = None,
) -> Program:
    """Trace a model on inputs described by text (`sparsify.loading.inputs.example_inputs`), for a task if one is named.

    Raises:
        LoadError: If the model cannot be made, or an input is misspelt.
        TraceError: If it cannot be traced on these inputs.
        TaskError: If there is no task of that name.
    """
    if task == AUTO:
        raise TaskError(
            "the task 'auto' is the one that fits the targets of data. Name the task, or give --data in place of --input."
        )
    torch.manual_seed(0)
    args, kwargs = example_inputs(inputs)
    loaded = load_model(model, weights=weights, trust_pickle=trust_pickle)
    places, limits = parsed(dynamic)
    outputs = {} if logits is None else {(None if task is None else kind(task).output) or "logits": logits}
    return trace(loaded, args, kwargs, dynamic=places, limits=limits, outputs=outputs, task=task)


def forms_in_training(program: Program, pattern: str, sparsity: float) -> dict[str, str]:
    """Find out how training would store each masked weight, by attaching a method with fixed masks to a copy.

    Args:
        program: of stage TRACED; it does not change.
        pattern: spelling of the pattern of the masks.
        sparsity: share of the masked weights that is inactive, in (0, 1).

    Returns:
        By masked weight, since which step it is compact, or why it is not.

    Raises:
        RecipeError: If the sparsity is not in (0, 1).
        SparsifyError: If the pattern is unknown or fits no weight, or the sparsity cannot be met.
    """
    if not 0 < sparsity < 1:
        raise RecipeError(f"sparsity should be in (0, 1), found {sparsity}. Give --sparsity 0.9, for example.")
    copy = program.clone().train()
    method = static_random(density=round(1 - sparsity, 12), pattern=pattern)
    return attach(method, copy, torch.optim.SGD(copy.parameters(), lr=0.1), total_steps=2).forms
