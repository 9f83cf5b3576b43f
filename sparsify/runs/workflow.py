"""The one function that walks the rooms in order: load, trace, train, calibrate, export, verify, report."""

from __future__ import annotations

import dataclasses
import shlex
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsify.calibration import evaluate, fit, kind_of
from sparsify.errors import SparsifyError, TrainingWarning, UnfinishedError
from sparsify.exporters import export
from sparsify.figures import metrics
from sparsify.figures.answers import answers, damage_row
from sparsify.figures.classifier import selective_differences
from sparsify.files import write_json
from sparsify.ir import Program
from sparsify.loading import Data
from sparsify.loading.augmentation import augmented
from sparsify.loading.once import read_once
from sparsify.methods import Method
from sparsify.passes import Pass, PassLog, Pipeline, recording
from sparsify.passes.scale_prediction import scale_row
from sparsify.reports import (
    covered,
    individual_row,
    layers,
    paired,
    pass_rows,
    sizes,
    spikes_row,
    task_quality,
    write_report,
)
from sparsify.runs.answering import chosen_confidence, pictures, scored
from sparsify.runs.artefacts import (
    feeding,
    fitted_metadata,
    input_row,
    measure_latency,
    ood_threshold,
    recipe_data,
    run_metadata,
    several_rows,
    training_times,
    trials,
    write_int8,
)
from sparsify.runs.continuation import check_continues, training_key
from sparsify.runs.folder import hold_folder
from sparsify.runs.inferring import with_task
from sparsify.runs.out_of_distribution import ood_rows, with_choice
from sparsify.runs.preflight import Job, heads, jobs, with_head, with_warmup, without_baseline
from sparsify.runs.recipe import Recipe, parse_recipe
from sparsify.runs.shifting import shift_rows
from sparsify.runs.standardising import shortfall
from sparsify.runs.teachers import TeacherProgram, load_teacher, referred
from sparsify.tasks import Task
from sparsify.training import Trained, train
from sparsify.version import versions

RECORD = "recipe.toml"
ARTEFACTS = ("model.onnx", "metrics.json", "latency.json", "answers.json", "report.html", RECORD, "program.sparsify")
Progress = Callable[[str, dict[str, Any]], None]


@read_once()
def run(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    timed: bool = True,
    rehearsed: bool = False,
    on_step: Progress | None = None,
    on_decode: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Run a recipe from data to report and write `ARTEFACTS` to ``out``, with int8 files if the recipe asks for them.

    Nothing is written before data and model are loaded and the run is rehearsed (`sparsify.runs.preflight`). Each trained model is saved
    right after training, so that a later failure does not lose it. ``answers.json`` is written for tasks of one answer per sample.

    Args:
        recipe: a resolved recipe. The task ``auto`` becomes the task that fits, the calibrator ``auto`` the head of the program or the
            usual head of the task, and a warm-up that is a share of the run its number of steps; the recorded recipe has these values.
        out: folder of the run; must be new or empty unless ``resume`` or ``overwrite``.
        resume: continue from the last checkpoint, bit for bit; keys that training does not read may differ.
        overwrite: first delete what an earlier run left in ``out``.
        timed: measure the latency of the files, and the times of training steps. Set False if other processes would disturb it;
            ``latency.json`` is then left out.
        rehearsed: the model is known to be convertible to ONNX; a grid converts the model of its cells once.
        on_step: called with the name of the part and the step row of the trainer.
        on_decode: called while images are decoded, with the number of decoded images and of all images.

    Returns:
        What ``metrics.json`` holds, and under ``latency`` what ``latency.json`` holds, or None: timings differ from run to run, metrics
        do not, but for what a timed trial chooses (``export.form`` ``auto:measure``, ``export.precision`` ``int8``).

    Raises:
        CheckpointError: If the folder holds another run, something else, or is in use.
        UnfinishedError: If training ended and something after it failed; naming what is missing and how to make it.
        SparsifyError: Any other of its kinds, before the first step or in training, with what to do.
    """
    torch.set_num_threads(recipe.threads)
    recipe = with_task(recipe, on_decode)
    with hold_folder(out, RECORD, resume=resume, overwrite=overwrite) as begin:
        if resume:
            _check_continues(recipe, out / RECORD)
        data = recipe_data(recipe, on_decode)
        recipe = with_warmup(recipe, data)
        if resume:
            _check_continues(recipe, out / RECORD, data)
        planned, task = jobs(recipe, data, converts=rehearsed), recipe.build_task()
        recipe = with_head(recipe, planned["model"].program)
        no_baseline = without_baseline(planned["model"])
        teacher = load_teacher(recipe.teacher, planned["model"].program, data, task) if recipe.teacher else None
        begin(recipe.to_toml())
        fingerprint, models = data.fingerprint(), dict[str, _Model]()
        for name, job in planned.items():
            models[name] = _train(job, recipe, data, fingerprint, out, resume, on_step, teacher, timed=timed)
            teacher = teacher or TeacherProgram(models[name].program, "dense baseline", "")
        return _finish(recipe, data, fingerprint, models, out, no_baseline=no_baseline, timed=timed)


def _check_continues(recipe: Recipe, record: Path, data: Data | None = None) -> None:
    """Check that the recorded run can be continued with this recipe; with the data, also that its warm-up has as many steps."""
    if record.exists() and record.read_text() != recipe.to_toml():
        earlier = parse_recipe(record, {})
        check_continues(recipe, earlier if data is None else with_warmup(earlier, data), record)


@dataclass(frozen=True)
class _Model:
    """A trained model of a run."""

    name: str
    method: Method
    program: Program
    folder: Path
    trained: Trained
    teacher: TeacherProgram | None
    passes: list[tuple[Pass, PassLog]]


def _train(
    job: Job,
    recipe: Recipe,
    data: Data,
    fingerprint: str,
    out: Path,
    resume: bool,
    on_step: Progress | None,
    teacher: TeacherProgram | None,
    *,
    timed: bool,
) -> _Model:
    """Train one model of the run, and save it."""
    folder = out if job.name == "model" else out / job.name
    other = teacher if job.method.needs_another else None
    taught = other if job.method.distillation else None
    method = referred(job.method, other, data)
    with recording() as record:
        trained = train(
            method,
            job.program,
            augmented(data.train, recipe.augment),
            data.validation,
            recipe.settings(),
            folder=folder,
            key=f"{training_key(recipe)}-{fingerprint}-{job.name}{other.fingerprint if other else ''}",
            task=recipe.build_task(),
            teacher=taught.program if taught else None,
            resume=resume,
            timed=timed,
            on_step=(lambda row: on_step(job.name, row)) if on_step else None,
        )
    job.program.save(folder / "program.sparsify")
    return _Model(job.name, method, job.program, folder, trained, taught, record)


class _Missing:
    """What failed after training: which file, why, and how to make it."""

    def __init__(self, out: Path) -> None:
        self.out, self.rows = out, list[dict[str, str]]()

    @contextmanager
    def unless(self, what: str, advice: str) -> Generator[None]:
        """Note a failure of the block instead of raising it."""
        try:
            yield
        except Exception as error:
            why = str(error) if isinstance(error, (SparsifyError, OSError)) else f"{type(error).__name__}: {error}"
            self.rows.append({"file": what, "reason": why, "advice": advice})

    def error(self, report: dict[str, Any] | None) -> UnfinishedError:
        """Return what to raise at the end."""
        listed = " ".join(f"{row['file']} is missing: {row['reason']} {row['advice']}" for row in self.rows)
        return UnfinishedError(f"training is finished, and its programs are saved in {self.out}. {listed}", report)


def _finish(
    recipe: Recipe,
    data: Data,
    fingerprint: str,
    models: Mapping[str, _Model],
    out: Path,
    *,
    no_baseline: str,
    timed: bool,
) -> dict[str, Any]:
    """Do everything after training. ``no_baseline``: why there can be none. A failure only leaves out its part, and is raised last."""
    missing, rows = _Missing(out), dict[str, Any]()
    task = recipe.build_task()
    read, sure, chosen_by = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    for name, model in models.items():
        with missing.unless(f"{name}.onnx", _advice(model, out, f"{name}.onnx", "--form dense")), recording() as record:
            row, read[name], found = _export(model, recipe, task, data, out)
            sure |= {name: found} if found else {}
            rows[name] = {**row, "passes": pass_rows([*model.passes, *record])}
        if recipe.export_precision == "int8" and name in rows:
            with missing.unless(f"{name}-int8.onnx", _advice(model, out, f"{name}-int8.onnx", "--precision int8")):
                rows[name]["int8"], chosen_by[name] = _int8(model, recipe, data, out, row["calibration"])
    if "model" not in rows:
        raise missing.error(None)
    labels = task.answers(data.test.targets) if "model" in sure else None
    given = None if labels is None else answers(sure, labels)
    if given and "dense" in sure:
        rows["damage"] = damage_row(sure["dense"], sure["model"], given["labels"])
    if "dense" in rows and task.name == "classification":
        rows["flips"] = dataclasses.asdict(metrics.flips(read["dense"], read["model"], data.test.targets))
        rows["differences"] = selective_differences(sure["model"][1], sure["dense"][1], data.test.targets)
    elif "dense" in rows:
        rows["paired"] = paired(task, rows["model"], read["model"], read["dense"], data.test.targets)
    report = {
        "recipe_hash": recipe.hash(),
        "seed": recipe.seed,
        "storage": recipe.storage,
        "versions": versions(),
        "data": {
            "name": recipe.data,
            "task": task.name,
            "classes": data.classes,
            "class_names": data.class_names,
            "fingerprint": fingerprint,
            "preparation": dict(data.preparation),
            **scale_row(models["model"].program),
            "samples": {part: len(getattr(data, part)) for part in ("train", "validation", "test")},
            "ood": {name: samples.fingerprint() for name, samples in data.ood.items()},
        },
        **_inputs(models["model"].program, data, recipe),
        **rows,
        **({"without_baseline": no_baseline} if no_baseline else {}),
        **({"missing": missing.rows} if missing.rows else {}),
    }
    again = "Make it with the same command and --resume, which does not train again."
    latency = None
    with missing.unless("metrics.json", again):
        write_json(out / "metrics.json", report)
    with missing.unless("answers.json", again):
        if given:
            shown = [row["sample"] for row in rows["damage"]["exemplars"]] if "damage" in rows else []
            kept = {"fingerprint": data.test.fingerprint(), **given, "pictures": pictures(data, shown)}
            write_json(out / "answers.json", kept)
    with missing.unless("latency.json", again):
        training = training_times(out / "latency.json", {name: model.trained.times for name, model in models.items()})
        (out / "latency.json").unlink(missing_ok=True)
        if timed:
            latency = measure_latency(out, data, threads=1, batch=recipe.export_batch)
            latency |= {"int8": chosen_by} if chosen_by else {}
            latency |= {"training": training} if training else {}
            write_json(out / "latency.json", latency)
    with missing.unless("report.html", f"Make it with: {shlex.join(['sparsify', 'report', str(out)])}"):
        write_report(out)
    result = {**report, "latency": latency}
    if missing.rows:
        raise missing.error(result)
    return result


def _inputs(program: Program, data: Data, recipe: Recipe) -> dict[str, Any]:
    """Return what the file takes, ``input``, or ``inputs`` of several, and the names of its ``outputs``."""
    outputs = list(program.output_names("eval"))
    array = "x_test" if recipe.test_holdout is None else "x_train"
    if not isinstance(data.example(1), Tensor):
        return {"inputs": several_rows(program, data, array), "outputs": outputs}
    row = input_row(data, program.input_specs[0].name, input_type=recipe.export_input, array=array)
    return {"input": row, "outputs": outputs}


def _advice(model: _Model, out: Path, file: str, option: str) -> str:
    words = ["sparsify", "export", model.folder / "program.sparsify", "--recipe", out / RECORD, "--out", out / file]
    command = shlex.join(map(str, words))
    return f"Make it with: {command} {option}; or give the same command with --resume, which does not train again."


def _export(
    model: _Model, recipe: Recipe, task: Task, data: Data, out: Path
) -> tuple[dict[str, Any], Any, tuple[Tensor, Tensor] | None]:
    """Calibrate and export one model of the run.

    Returns:
        Its row of ``metrics.json``; what the task reads of it on the test set; and its scores and calibrated probabilities
        (`sparsify.runs.answering.scored`).
    """
    program, name, fitted = model.program, model.name, None
    chosen, choice = with_choice(recipe, program, data)  # the file names the recipe as it was given
    Pipeline(heads(chosen, program)).apply(program)
    if kind_of(program) is not None:
        fitted = fit(program, data.validation, task=task, training=data.train).to_dict()
    program.save(model.folder / "program.sparsify")
    outputs = evaluate(program, data.test)
    read = program.reading(task.output, "eval", list(outputs.values()))
    threshold = ood_threshold(program, data)
    result = export(
        program,
        out / f"{name}.onnx",
        inputs=program.input_tensors(data.example(64)),
        opset=recipe.opset,
        storage=recipe.storage,
        form=recipe.form,
        selection=recipe.selection,
        batch=recipe.export_batch,
        metadata=run_metadata(program, recipe, data, model.method) | fitted_metadata(fitted, threshold),
        **feeding(data, recipe.export_input, task.name),
    )
    lacking = _lacking(program, task, read, data)
    size, table = sizes(program), layers(program, model.trained.coverage, model.trained.forms)
    row = {
        "method": model.method.name,
        **task_quality(task, read, outputs, data.test.targets),
        **(
            {"individual": individual_row(program, data.validation, data.test, read)}
            if task.name == "classification"
            else {}
        ),
        **chosen_confidence(program, task, read, outputs, data),
        **spikes_row(program, data.test),
        **({"shortfall": lacking} if lacking else {}),
        **size,
        "nonzeros": result.nonzeros if program.masks() else size["active"],
        "bytes": result.bytes,
        "layers": table,
        "coverage": covered(table),
        "calibration": fitted,
        "forms": dict(result.forms),
        "parity": {"ok": True, **dataclasses.asdict(result.parity)},
        "counts": model.trained.counts,
        "schedule": model.trained.schedule,
        "savings": model.trained.savings.to_dict(),
        **({"teacher": model.teacher.row(task, data)} if model.teacher else {}),
        "ood": ood_rows(program, outputs, data),
        **shift_rows(recipe, program, task, outputs, data),
        **({"ood_choice": choice.to_dict()} if choice else {}),
        "ood_threshold": threshold,
    }
    return row, read, scored(task, read, outputs)


def _lacking(program: Program, task: Task, read: Any, data: Data) -> str:
    """Why the model is of no use, with a warning; the empty text where it is."""
    figures = None
    if task.constant is not None:
        outputs = evaluate(program, data.validation)
        figures = task.figures(program.reading(task.output, "eval", list(outputs.values())), data.validation.targets)
    found = shortfall(task, read, figures)
    if found:
        warnings.warn(
            f"the model is of no use: {found}. Lower train.lr, train longer, or set method.sparsity lower.",
            TrainingWarning,
            stacklevel=2,
        )
    return found


def _int8(model: _Model, recipe: Recipe, data: Data, out: Path, fitted: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the int8 file of a model whose heads have the log ``fitted``: its row of ``metrics.json``, and the timings that chose it."""
    result, row = write_int8(
        model.program,
        out / f"{model.name}-int8.onnx",
        data,
        task=recipe.build_task(),
        opset=recipe.opset,
        form=recipe.form,
        selection=recipe.selection,
        batch=recipe.export_batch,
        input_type=recipe.export_input,
        metadata=run_metadata(model.program, recipe, data, model.method),
        fitted=fitted or {},
    )
    return row, trials(result.int8)
