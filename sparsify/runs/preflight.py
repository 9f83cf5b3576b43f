"""Checks before training everything that can be known then: the model, the method's masks, and whether the file can be written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.calibration import installed_kind, kind_of
from sparsify.errors import DataError, ExportError, RecipeError, SparsifyError, TraceError, TrainingError
from sparsify.exporters.conversion import convert
from sparsify.exporters.signature import holds_samples
from sparsify.exporters.writing import check
from sparsify.heads import fitting, named
from sparsify.heads.base import FEATURES
from sparsify.ir import Program, Stage, trace
from sparsify.ir.binding import arguments_of
from sparsify.ir.dimensions import parsed
from sparsify.ir.effects import unexportable
from sparsify.ir.evaluation import output_shape, outputs_of
from sparsify.ir.features import check_features
from sparsify.ir.heads import attached, head_buffers, head_names, needing_features
from sparsify.loading import Data, load_model
from sparsify.loading.augmentation import check_augmentation
from sparsify.methods import Method, dense
from sparsify.methods.durations import read_length
from sparsify.parts.trees import tensors
from sparsify.passes import AttachCalibrationHead, Pipeline
from sparsify.runs.artefacts import calibration_rows, feeding, recipe_data
from sparsify.runs.continuation import training_key
from sparsify.runs.further_heads import further_heads, spelt_head
from sparsify.runs.out_of_distribution import check_choice
from sparsify.runs.preparing import prepared
from sparsify.runs.recipe import AUTO, Recipe
from sparsify.runs.saved import is_saved, load_saved
from sparsify.runs.shifting import check_shift
from sparsify.runs.standardising import standardised
from sparsify.tasks import Classification, Task
from sparsify.tasks.base import check_gradient
from sparsify.training import rehearse
from sparsify.training.individual import set_aside_count
from sparsify.training.plan import check_warmup
from sparsify.user_code import told

Progress = Callable[[int, int], None]
LARGEST_FILE = 2**31 - 1
"""Largest number of bytes of an ONNX file (a limit of protobuf)."""
DATA_KEYS = (
    "data", "task", "target", "category_columns", "ignore_columns", "holdout", "test_holdout", "train_samples", "image_size", "channels",
    "normalise", "mean", "std",
)  # fmt: skip
MODEL_KEYS = (
    "model", "weights", "trust_pickle", "logits", "dynamic", "batch_size", "loss", "figures", "task_options"
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One model of a run, ready to be trained."""

    name: str
    method: Method
    program: Program


def jobs(recipe: Recipe, data: Data, *, converts: bool = False) -> dict[str, Job]:
    """Trace the models of a run and rehearse them on copies: attach the method, and convert the graph to ONNX.

    Args:
        recipe: recipe of the run.
        data: data of the recipe.
        converts: whether the model is already known to be convertible.

    Returns:
        ``dense``, if the recipe has a baseline, then ``model``.

    Raises:
        RecipeError: If ``export.batch`` exceeds the number of training samples that int8 observes.
        ExportError: If the model cannot be converted, or its file would be too large.
        SparsifyError: If training or export would raise it later.
    """
    observed = len(calibration_rows(data, recipe.export_batch)) if recipe.export_precision == "int8" else None
    if observed is not None and recipe.export_batch > observed:
        raise RecipeError(
            f"export.batch is {recipe.export_batch}, but int8 times batches of training samples and observes {observed}. Lower it."
        )
    recipe = with_warmup(recipe, data)
    feeding(data, recipe.export_input)
    check_augmentation(data.example(), recipe.augment)
    check_choice(recipe, data)
    check_shift(recipe, data)
    task = recipe.build_task()
    methods = {"dense": dense()} if recipe.baseline and recipe.method != "dense" else {}
    methods["model"] = recipe.build_method()
    found = {name: Job(name, method, traced(recipe, data)) for name, method in methods.items()}
    for job in found.values():
        rehearsed = rehearse(job.method, job.program, len(data.train), recipe.settings(), task=task)
        if job.name == "model" and not converts:  # the baseline has the same operators
            check_export(rehearsed, recipe, data)
    return found


def with_warmup(recipe: Recipe, data: Data) -> Recipe:
    """Replace the warm-up by its number of steps, which is a share of the run or given.

    Raises:
        TrainingError: If the warm-up is not shorter than the run.
    """
    aside = set_aside_count(recipe.build_method().individual, len(data.train))
    total = (len(data.train) - aside) // recipe.batch_size * recipe.epochs
    steps = read_length(recipe.warmup, "train.warmup", 0).steps(total)
    if total:  # otherwise, the rehearsal says that there are too few samples
        check_warmup(steps, total)
    return dataclasses.replace(recipe, warmup=steps)  # type: ignore[type-var]


def without_baseline(job: Job) -> str:
    """Why a run of this model, not yet trained, can have no dense baseline; the empty text where it can."""
    if job.method.name == "dense":
        return "its method is dense itself"
    if job.program.masks():
        return "it trains a saved program with masks on, from which no dense baseline can start"
    return ""


def check_export(program: Program, recipe: Recipe, data: Data) -> None:
    """Convert a program to ONNX as its export will, and discard the result. This takes the time and memory of a conversion.

    Raises:
        ExportError: If it cannot be converted, or its file would be too large.
        PassError: If a head reads features that the program does not have.
    """
    size = sum(p.numel() * p.element_size() for p in program.parameters())
    if size > LARGEST_FILE:
        raise ExportError(
            f"the weights of {recipe.model} take {size:,} bytes, and an ONNX file holds at most {LARGEST_FILE:,}. Use a smaller model."
        )
    finished = Pipeline(heads(recipe, program))(program)
    if finished.stage is Stage.MASKED:
        finished = Pipeline.parse("fold-masks")(finished)
    example = finished.input_tensors(data.example())
    if finished.dynamic_batch and len(data.validation) == 1:
        example = [torch.cat([value, value]) if holds_samples(finished, spec) else value
                   for spec, value in zip(finished.input_specs, example, strict=True)]  # fmt: skip
    for head in (one.head for one in attached(finished) if one.head is not None and FEATURES in one.head.reads):
        with needing_features(head.spec, recipe.build_task()):
            check_features(finished, data.validation)
    check(convert(finished.eval(), example, recipe.opset).clone())


def heads(recipe: Recipe, program: Program) -> tuple[AttachCalibrationHead, ...]:
    """Return the passes that attach the heads of a run: the one that calibrates, if it is not the program's, then the others.

    A head that takes the place of one that calibrates removes all; those that the program had besides are then attached again.

    Raises:
        TrainingError: If the recipe leaves the kind to the program, which has a head that is not installed.
    """
    kinds, kind, found = (
        fitting(recipe.build_task()),
        with_head(recipe, program).calibrator,
        list[AttachCalibrationHead](),
    )
    had = [
        one.head
        for one in attached(program)
        if one.head is not None and not one.head.calibrates and one.head.name != kind.partition(":")[0]
    ]
    wanted = further_heads(recipe.heads)
    if spelt_head(kind, kinds) and kind != kind_of(program):
        replaces = bool(head_names(program) or head_buffers(program))
        found.append(AttachCalibrationHead(kind=kind, task=recipe.task, replace=replaces))
        made = {name for head in (*wanted, named(kind)) for name in head.outputs}
        wanted = (*(head for head in had if head.name in kinds and not made & {*head.outputs}), *wanted)
        had = [] if named(kind).calibrates else had
    for head in wanted:
        if head not in had:
            replaces = any({*head.outputs} & {*other.outputs} for other in had)
            found.append(AttachCalibrationHead(kind=head.spec, task=recipe.task, replace=replaces))
    return tuple(found)


def with_head(recipe: Recipe, program: Program) -> Recipe:
    """Resolve the kind of a recipe's calibration head, with all its values; a recipe for a task without heads stays unchanged.

    ``auto`` becomes the kind of the program's head if it fits the task, else the usual head of the task. ``temperature`` also becomes the
    usual head if the task has no temperature.

    Raises:
        TrainingError: If the program has a head that is not installed, and the recipe does not name another.
    """
    kinds = fitting(recipe.build_task())
    kind = spelt_head(installed_kind(program) if recipe.calibrator == AUTO else recipe.calibrator, kinds)
    kind = kind or (spelt_head(kinds[0], kinds) if kinds else recipe.calibrator)
    return dataclasses.replace(recipe, calibrator=kind)  # type: ignore[type-var]


def failing(
    recipes: Mapping[str, Recipe],
    on_decode: Progress | None = None,
    on_cell: Callable[[str], object] | None = None,
) -> dict[str, str]:
    """Rehearse the runs of a grid. Runs that differ only by their seed are rehearsed once.

    Args:
        recipes: recipes by the name of the cell.
        on_decode: called while images are decoded.
        on_cell: called with the name of each cell before it is rehearsed.

    Returns:
        The reason why a cell cannot be run, by the cell's name; cells that can be run are not in it.

    Raises:
        SparsifyError: If data cannot be used.
    """
    known_data, programs, reasons = dict[str, Data](), dict[str, Program | str](), dict[str, str]()
    for cell, recipe in recipes.items():
        if on_cell:
            on_cell(cell)
        data_key, model_key = _data_of(recipe), model_of(recipe)
        data = known_data.get(data_key) or known_data.setdefault(data_key, recipe_data(recipe, on_decode))
        if model_key not in programs:
            programs[model_key] = _exportable(recipe, data)
        kind = _kind(recipe)
        if kind not in reasons:
            reasons[kind] = _reason(recipe, programs[model_key], data)
    return {cell: reasons[_kind(recipe)] for cell, recipe in recipes.items() if reasons[_kind(recipe)]}


def model_of(recipe: Recipe) -> str:
    """Return a text of everything that the model of a run depends on; recipes with the same text share its rehearsal."""
    return _data_of(recipe) + _text(recipe, (*MODEL_KEYS, "opset", "calibrator", "heads"))


def _data_of(recipe: Recipe) -> str:
    return _text(recipe, (*DATA_KEYS, "ood", "ood_validation"))


def _kind(recipe: Recipe) -> str:
    return training_key(dataclasses.replace(recipe, seed=0))  # type: ignore[type-var]


def _exportable(recipe: Recipe, data: Data) -> Program | str:
    """Trace and convert the model of a cell; returns the program, or why that is not possible."""
    try:
        program = traced(recipe, data)
        check_export(program, recipe, data)
    except SparsifyError as error:
        return str(error)
    return program


def _reason(recipe: Recipe, program: Program | str, data: Data) -> str:
    """Return why a cell cannot be run; empty if it can."""
    if isinstance(program, str):
        return program
    try:
        recipe = with_warmup(recipe, data)
        rehearse(recipe.build_method(), program, len(data.train), recipe.settings(), task=recipe.build_task())
    except SparsifyError as error:
        return str(error)
    return ""


def _text(recipe: Recipe, keys: Sequence[str]) -> str:
    return repr([getattr(recipe, key) for key in keys])


def traced(recipe: Recipe, data: Data) -> Program:
    """Build the recipe's model with its seed and trace it on real inputs, or load its saved program; a regression gets its scale.

    Raises:
        TraceError: If it cannot be traced, does not return what the task reads, or could not be trained or exported.
        DataError: If the data have more classes than the model has outputs, or targets do not fit the task.
    """
    program = load_saved(recipe, data) if is_saved(recipe) else _traced(recipe, data)
    program = prepared(program, recipe.passes)
    example, task = data.example(), recipe.build_task()
    program.task = task
    if lost := unexportable(program):
        raise TraceError(f"{recipe.model} {lost}")
    if program.dynamic_batch and recipe.batch_size not in program.batch_ranges["train"]:
        raise TraceError(
            f"{recipe.model} holds for batches of {program.batch_ranges['train']} in training, and batch_size is {recipe.batch_size}. "
            f"Set batch_size within that range, or make forward independent of the number of samples."
        )
    if program.dynamic_batch and not program.batch_ranges["eval"].everything:
        raise TraceError(
            f"{recipe.model} holds for batches of {program.batch_ranges['eval']} in eval mode; a run evaluates and exports with others as "
            f"well. Make forward independent of the number of samples, or use sparsify.trace and a loop of your own."
        )
    if type(task) is not Classification:
        _check_targets(program, task, data)
        return standardised(program, task, data)
    with torch.no_grad():
        shape = outputs_of(program.eval(), example)["logits"].shape
    if len(shape) != 2:
        raise TraceError(f"{recipe.model} returns logits of shape {list(shape)}; a classifier returns [N, K].")
    if shape[1] < data.classes:
        lowest = int(data.train.targets.min())
        advice = (
            f"No training sample has a class below {lowest}: if they are numbered from {lowest}, subtract it from every label."
            if lowest
            else "Widen the last layer."
        )
        raise DataError(f"{recipe.model} has {shape[1]} outputs, the data have {data.classes} classes. {advice}")
    return program


def _traced(recipe: Recipe, data: Data) -> Program:
    torch.manual_seed(recipe.seed)
    weights = None if recipe.weights is None else Path(recipe.weights)
    model: nn.Module = load_model(recipe.model, weights=weights, trust_pickle=recipe.trust_pickle)
    task = recipe.build_task()
    outputs = {} if recipe.logits is None else {task.output or "logits": recipe.logits}
    dynamic, limits = parsed(recipe.dynamic)
    meaning = None if type(task) is Classification else task
    classes = data.classes or None
    return trace(model, data.example(), dynamic=dynamic, limits=limits, outputs=outputs, classes=classes, task=meaning)


def _check_targets(program: Program, task: Task, data: Data) -> None:
    """Check that the targets of every part fit what the program returns, and that the task can compute its figures."""
    program.eval()
    batch = data.validation.batch(torch.arange(min(2, len(data.validation))))
    with torch.no_grad():
        found = outputs_of(program, batch.inputs)
    output, judged = (program.reading(name, "eval", list(found.values())) for name in (task.output, task.trained_on))
    if task.output is not None:
        for part in (data.train, data.validation, data.test):
            task.check(part.targets, output_shape(program, task.output, output))
    with _telling(task), torch.no_grad():
        _kept(task, "loss", lambda: task.loss(judged, batch.target), judged, batch.target)
        _kept(task, "figures", lambda: task.figures(output, batch.target), output, batch.target)
    _check_learning(program, task, data)


def _check_learning(program: Program, task: Task, data: Data) -> None:
    """Check that the model can learn: the loss of two training samples (or of the program's fixed batch) must have a gradient."""
    sizes = program.batch_ranges["train"]
    count = next((size for size in (2, *range(3, 65)) if size in sizes), 2) if program.dynamic_batch else 0
    count = count or int(program.input_specs[0].shape[0])
    if len(data.train) < count:
        return
    batch = data.train.batch(torch.arange(count))
    args, kwargs = arguments_of(batch.inputs)
    copy = program.clone().train()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        judged = copy.reading(task.trained_on, "train", copy.run_phase("train", *args, **kwargs))
        with _telling(task):
            value = task.loss(judged, batch.target)
            check_gradient(task, judged, value)
            if value.requires_grad:
                value.backward()


@contextmanager
def _telling(task: Task) -> Generator[None]:
    """Turn errors of the loss and the figures into errors of this package."""
    try:
        yield
    except SparsifyError:
        raise
    except Exception as error:
        raise TraceError(
            f"the loss or the figures of task {str(task)!r} fail on two samples of the data: {told(error)}. Check what they expect of "
            f"the model's output and of the targets."
        ) from error


def _kept(task: Task, name: str, call: Callable[[], object], *given: Any) -> None:
    """Call the loss or the figures, and refuse functions that write into their arguments, because held-out targets are used again."""
    before = [value.detach().clone() for value in tensors(given)]
    call()
    if not all(map(_same, before, tensors(given))):
        raise TrainingError(
            f"the function of the {name} of task {str(task)!r} writes into the output or the target that it is given, which are "
            f"used again. Compute with new tensors: t.clone() first, and t.clamp(...) in place of t.clamp_(...)."
        )


def _same(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are equal; NaN equals NaN."""
    return torch.equal(first.nan_to_num(), second.detach().nan_to_num())
