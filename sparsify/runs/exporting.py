"""Exports a saved program again, proves the file on the data of its run or on others, and reads its outputs as its task says."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import torch

from sparsify.calibration import fit, kind_of
from sparsify.errors import ExportError, RecipeError, SparsifyWarning, TaskError
from sparsify.exporters import ExportResult, export
from sparsify.ir import Program, Stage
from sparsify.ir.evaluation import output_shape, outputs_of
from sparsify.loading import Data, load_data
from sparsify.loading.sources import TABLES
from sparsify.methods import dense
from sparsify.runs.artefacts import feeding, fitted_metadata, ood_threshold, recipe_data, run_metadata, write_int8
from sparsify.runs.recipe import AUTO, Recipe, parse_recipe
from sparsify.tasks import Task, infer
from sparsify.tasks.stored import as_task


def export_saved(
    program: Path,
    out: Path,
    *,
    data: str | None = None,
    recipe: Path | None = None,
    task: str | None = None,
    image_size: int | None = None,
    opset: int = 20,
    storage: str = "dense",
    form: str = "auto",
    selection: str = "by-batch",
    precision: str = "fp32",
    batch: int = 1,
    threads: int = 1,
    input_type: str = "float",
    overwrite: bool = False,
    steps: str = "whole",
) -> tuple[ExportResult, dict[str, Any] | None]:
    """Export a saved program and prove the file on test inputs, which training has not seen.

    Args:
        program: file of a run or of `Program.save`.
        out: path of the ONNX file.
        data: as for `load_data`, split by seed 0; its inputs must fit the program. None: ``digits``.
        recipe: recipe of the run that made the program, in place of ``data``: uses its data with the same split and normalisation. The file
            gets the same metadata as the file of the run.
        task: what the outputs mean. None: the task of the program's file or the recipe, else the one that fits data and outputs.
        image_size: side in pixels to which a folder's images are resized.
        opset, storage, form, selection, precision, batch, threads, input_type, steps: as for `sparsify.export`.
        overwrite: replace ``out``.

    Returns:
        The result; with precision int8, also the figures that `write_int8` measures on the test samples.

    Raises:
        ExportError: If ``out`` exists and ``overwrite`` is not given, or the file does not agree with the program.
        RecipeError: If both ``data`` and ``recipe`` are given, or the recipe is invalid or for another task.
        TaskError: If nothing says what the outputs mean, and no task or several fit.
        SparsifyError: If the program or the data cannot be read, or do not fit each other.
    """
    if out.is_dir():
        raise ExportError(f"{out} is a folder; --out names the ONNX file, e.g. {out / 'model.onnx'}.")
    if out.exists() and not overwrite:
        raise ExportError(f"{out} exists. Replace it with --overwrite, or use another --out.")
    loaded = Program.load(program).eval()
    if recipe is None and data is not None and Path(data).suffix.lower() in TABLES:
        raise RecipeError(
            f"{data} is a table, and only the recipe of the run says how its columns became inputs. Give --recipe, its recipe.toml, in "
            f"place of --data."
        )
    metadata = dict[str, str]()
    if recipe is None:
        found, meaning = _data(loaded, "digits" if data is None else data, task, image_size)
    elif data is None and image_size is None and task is None:
        parsed = _recipe(loaded, recipe)
        found, meaning = recipe_data(parsed), parsed.build_task()
        method = dense() if loaded.stage is Stage.TRACED else parsed.build_method()
        metadata = run_metadata(loaded, parsed, found, method)
    else:
        raise RecipeError(
            "the recipe names the data, their size and the task; leave out --data, --image-size and --task, or --recipe."
        )
    batch_inputs = found.test.batch(torch.arange(min(64, len(found.test)))).inputs
    outputs_of(loaded, batch_inputs)  # raises if the data do not fit the program
    fitted = dict[str, Any]()
    if recipe is not None and kind_of(loaded):
        fitted |= fit(loaded.clone(), found.validation, task=meaning, training=found.train).to_dict()
    if precision == "int8" and storage == "dense" and steps == "whole":
        return write_int8(
            loaded, out, found, task=meaning, opset=opset, form=form, selection=selection, batch=batch, threads=threads,
            input_type=input_type, metadata=metadata, fitted=None if recipe is None else fitted,
        )  # fmt: skip
    if recipe is not None:
        metadata |= fitted_metadata(fitted, ood_threshold(loaded, found))
    result = export(
        loaded, out, inputs=loaded.input_tensors(batch_inputs), opset=opset, storage=storage, form=form, selection=selection,
        precision=precision, batch=batch, threads=threads, metadata=metadata, steps=steps, **feeding(found, input_type, meaning.name),
    )  # fmt: skip
    return result, None


def _recipe(program: Program, path: Path) -> Recipe:
    """Read the recipe of a program; ``auto`` becomes the program's own task and head."""
    parsed, known = parse_recipe(path, {}), program.task
    if parsed.calibrator == AUTO and (kind := kind_of(program)) is not None:
        parsed = dataclasses.replace(parsed, calibrator=kind)  # type: ignore[type-var]
    if known is None or parsed.task == known.name:
        return parsed
    if parsed.task != AUTO:
        raise RecipeError(
            f"{path} is a recipe for the task {parsed.task!r}, and program {program.name!r} was made for {known.name!r}. Give the recipe "
            f"of its run."
        )
    return dataclasses.replace(parsed, task=known.name)  # type: ignore[type-var]


def _data(program: Program, text: str, named: str | None, image_size: int | None) -> tuple[Data, Task]:
    """Load data that were named without a recipe, and find what the outputs of the program mean."""
    task = program.task if named is None else as_task(named)
    if task is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SparsifyWarning)  # they are said when the data are read for the task
            task = _fitting(program, load_data(text, seed=0, image_size=image_size))
    outputs = program.output_names("eval")
    if task.output is not None and task.output not in outputs:
        raise TaskError(
            f"task {task.name!r} reads the output {task.output!r}, and {program.name!r} returns {', '.join(outputs)}. Name the task that "
            f"it was traced for, or trace the model for this one: sparsify trace --task {task.name}."
        )
    return load_data(text, seed=0, image_size=image_size, task=task.name), task


def _fitting(program: Program, data: Data) -> Task:
    """Find the task that fits targets and outputs; if none does, `infer` raises an error that says what to write."""
    with torch.no_grad():
        outputs = outputs_of(program, data.example())
    name = next((name for name in ("prediction", "logits") if name in outputs), None)
    if name is None:
        raise TaskError(
            f"the file of {program.name!r} does not say what its outputs mean ({', '.join(outputs)}). Name their task: --task."
        )
    return infer(data.train.targets, output_shape(program, name, outputs[name]))
