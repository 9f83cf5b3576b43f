"""The one function that walks the rooms in order: load, trace, train, calibrate, export, verify, report."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.calibration import CalibrationLog, evaluate, fit
from sparsify.deploy import feeding, measure_latency, recipe_data, trials, write_int8
from sparsify.errors import CheckpointError, DataError, RecipeError, TraceError
from sparsify.exporters import export
from sparsify.ir import Program, trace
from sparsify.ir.effects import unexportable
from sparsify.ir.serialization import UNFINISHED, write_atomically
from sparsify.loading import Data, load_model
from sparsify.loading.inputs import example_inputs
from sparsify.methods import Method, dense
from sparsify.parts import metrics
from sparsify.passes import AttachCalibrationHead, Pipeline, recording
from sparsify.recipe import Recipe
from sparsify.reports import covered, layers, ood_quality, pass_rows, quality, sizes, write_report
from sparsify.teachers import TeacherProgram, load_teacher
from sparsify.training import train
from sparsify.version import versions

ARTEFACTS = ("model.onnx", "metrics.json", "latency.json", "report.html", "recipe.toml", "program.sparsify")
ACCEPTED = 0.95
"""Share of validation samples whose ``ood_score`` is at least the threshold that is stored in the file."""
Progress = Callable[[str, dict[str, Any]], None]


def run(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    timed: bool = True,
    on_step: Progress | None = None,
    on_decode: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Do the whole job and leave `ARTEFACTS` in ``out``, and int8 files where the recipe asks for them.

    Args:
        recipe: resolved.
        out: folder of the run; must be new or empty unless ``resume`` or ``overwrite``.
        resume: go on from the last checkpoint, to the same bits.
        overwrite: delete what an earlier run left in ``out`` first.
        timed: measure the latency of the files; not where other processes would disturb it, and ``latency.json`` is then left out.
        on_step: called with the part's name and the trainer's step row.
        on_decode: called while images are decoded, with how many are done of how many.

    Returns:
        What ``metrics.json`` holds, and under ``latency`` what ``latency.json`` holds, or None: timings differ from run to run, metrics
        do not, but for what a timed trial chooses (``form = "auto:measure"``, ``export_precision = "int8"``).

    Raises:
        CheckpointError: If the folder holds another run, something else, or is in use.
        RecipeError: If ``export_batch`` is more than the data hold.
        SparsifyError: Any other of its kinds, with what to do.
    """
    torch.set_num_threads(recipe.threads)
    data = recipe_data(recipe, on_decode)
    if recipe.export_batch > min(len(data.train), len(data.validation)):
        raise RecipeError(
            f"export_batch is {recipe.export_batch}, but the training and validation parts hold {len(data.train)} and "
            f"{len(data.validation)} samples. Lower it."
        )
    feeding(data, recipe.export_input)  # raises before anything is trained
    with hold_folder(out, "recipe.toml", resume=resume, overwrite=overwrite):
        earlier = out / "recipe.toml"
        if resume and earlier.exists() and earlier.read_text() != recipe.to_toml():
            raise CheckpointError(
                f"{out} was started with another recipe; see {earlier}. Resume with it, or use another --out."
            )
        write_atomically(earlier, recipe.to_toml().encode())
        fingerprint, rows = data.fingerprint(), dict[str, Any]()
        logits, chosen_by = dict[str, Tensor](), dict[str, Any]()
        teacher = load_teacher(recipe.teacher, traced(recipe, data), data) if recipe.teacher else None
        models = {"dense": dense()} if recipe.baseline and recipe.method != "dense" else {}
        for name, method in {**models, "model": recipe.build_method()}.items():
            with recording() as record:
                row, logits[name], program = _part(
                    name, method, recipe, data, fingerprint, out, resume, on_step, teacher
                )
            teacher = teacher or TeacherProgram(program, "dense baseline", "")
            rows[name] = {**row, "passes": pass_rows(record)}
            if recipe.export_precision == "int8":
                rows[name]["int8"], chosen_by[name] = _int8(name, program, method, recipe, data, out)
        if "dense" in logits:
            rows["flips"] = dataclasses.asdict(metrics.flips(logits["dense"], logits["model"], data.test.labels))
        report = {
            "recipe_hash": recipe.hash(),
            "seed": recipe.seed,
            "storage": recipe.storage,
            "versions": versions(),
            "data": {
                "name": recipe.data,
                "classes": data.classes,
                "class_names": data.class_names,
                "fingerprint": fingerprint,
                "samples": {part: len(getattr(data, part)) for part in ("train", "validation", "test")},
                "ood": {name: samples.fingerprint() for name, samples in data.ood.items()},
            },
            **rows,
        }
        write_json(out / "metrics.json", report)
        latency = measure_latency(out, data, threads=1, batch=recipe.export_batch) if timed else None
        if latency is not None:
            latency |= {"int8": chosen_by} if chosen_by else {}
            write_json(out / "latency.json", latency)
        write_report(out)
    return {**report, "latency": latency}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an artefact: keys sorted, atomically."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def _part(
    name: str,
    method: Method,
    recipe: Recipe,
    data: Data,
    fingerprint: str,
    out: Path,
    resume: bool,
    on_step: Progress | None,
    teacher: TeacherProgram | None,
) -> tuple[dict[str, Any], Tensor, Program]:
    """Train, calibrate and export one model of the run: its row of ``metrics.json``, its logits on the test set, and itself."""
    folder = out if name == "model" else out / name
    program = traced(recipe, data)
    taught = teacher if method.distillation else None
    trained = train(
        method,
        program,
        data.train,
        data.validation,
        recipe.settings(),
        folder=folder,
        key=f"{recipe.hash()}-{fingerprint}-{name}{taught.fingerprint if taught else ''}",
        teacher=taught.program if taught else None,
        resume=resume,
        on_step=(lambda row: on_step(name, row)) if on_step else None,
    )
    Pipeline((AttachCalibrationHead(kind=recipe.calibrator),)).apply(program)
    log = fit(program, data.validation)
    program.save(folder / "program.sparsify")
    outputs = evaluate(program, data.test)
    logits = outputs["logits"]
    scores = evaluate(program, data.validation).get("ood_score") if "ood_score" in outputs else None
    threshold = None if scores is None else float(scores.quantile(1 - ACCEPTED))
    threshold_text = {} if threshold is None else {"ood_threshold": repr(threshold)}
    result = export(
        program,
        out / f"{name}.onnx",
        inputs=[data.example(64)],
        opset=recipe.opset,
        storage=recipe.storage,
        form=recipe.form,
        selection=recipe.selection,
        batch=recipe.export_batch,
        metadata=_metadata(program, method, recipe) | threshold_text | _noted(log),
        **feeding(data, recipe.export_input),
    )
    size, table = sizes(program), layers(program, trained.coverage)
    row = {
        "method": method.name,
        **quality(logits.softmax(1), outputs["probabilities"], data.test.labels),
        **size,
        "nonzeros": result.nonzeros if program.masks() else size["active"],
        "bytes": result.bytes,
        "layers": table,
        "coverage": covered(table),
        "calibration": log.to_dict(),
        "forms": dict(result.forms),
        "parity": {"ok": True, **dataclasses.asdict(result.parity)},
        "counts": trained.counts,
        **({"teacher": taught.row(data)} if taught else {}),
        "ood": {name: ood_quality(outputs, evaluate(program, samples)) for name, samples in data.ood.items()},
        "ood_threshold": threshold,
    }
    return row, logits, program


def _int8(
    name: str, program: Program, method: Method, recipe: Recipe, data: Data, out: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The int8 file of one model: its row of ``metrics.json``, and the timings it was chosen by."""
    result, row = write_int8(
        program,
        out / f"{name}-int8.onnx",
        data,
        opset=recipe.opset,
        form=recipe.form,
        selection=recipe.selection,
        batch=recipe.export_batch,
        input_type=recipe.export_input,
        metadata=_metadata(program, method, recipe),
    )
    assert result.int8 is not None
    return row, trials(result.int8)


def _metadata(program: Program, method: Method, recipe: Recipe) -> dict[str, str]:
    """What the files of a run say of themselves."""
    return {
        "method": method.name,
        "density": repr(program.costs().density),
        "pattern": method.pattern,
        "calibration": recipe.calibrator,
        "recipe_hash": recipe.hash(),
    }


def _noted(log: CalibrationLog) -> dict[str, str]:
    return {"calibration_note": log.note} if log.note else {}


def traced(recipe: Recipe, data: Data) -> Program:
    """The recipe's model, seeded and traced on real inputs.

    Raises:
        TraceError: If it cannot be traced, does not return one score per class, or could not be trained or exported.
        DataError: If the data have more classes than it has outputs.
    """
    torch.manual_seed(recipe.seed)
    weights = None if recipe.weights is None else Path(recipe.weights)
    model: nn.Module = load_model(recipe.model, weights=weights, trust_pickle=recipe.trust_pickle)
    example = data.example()
    outputs = {} if recipe.logits is None else {"logits": recipe.logits}
    program = trace(model, (example,), outputs=outputs, classes=data.classes)
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
    with torch.no_grad():
        shape = program.eval().outputs(example)["logits"].shape
    if len(shape) != 2:
        raise TraceError(f"{recipe.model} returns logits of shape {list(shape)}; a classifier returns [N, K].")
    if shape[1] < data.classes:
        raise DataError(
            f"{recipe.model} has {shape[1]} outputs, the data have {data.classes} classes. Widen the last layer."
        )
    return program


def traced_without_data(
    model: str, inputs: Sequence[str], *, weights: Path | None = None, trust_pickle: bool = False
) -> Program:
    """A model traced on inputs made from text (`sparsify.loading.inputs.example_inputs`).

    Raises:
        LoadError: If the model cannot be made, or an input is misspelt.
        TraceError: If it cannot be traced on these inputs.
    """
    torch.manual_seed(0)
    args, kwargs = example_inputs(inputs)
    return trace(load_model(model, weights=weights, trust_pickle=trust_pickle), args, kwargs)


@contextmanager
def hold_folder(out: Path, record: str, *, resume: bool, overwrite: bool) -> Generator[None]:
    """Hold a folder for this process alone.

    Args:
        out: made if missing.
        record: name of the file that says what was started in the folder, and by which kind of command.
        resume: what is there is gone on with.
        overwrite: what is there is deleted, if ``record`` is.

    Raises:
        CheckpointError: If the folder is in use, cannot be written, or holds something else.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise CheckpointError(f"cannot write into {out}: {error.strerror}. Choose another --out.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(f"another run is using {out}. Wait for it, or choose another --out.") from error
        for unfinished in (*out.glob(f".*{UNFINISHED}"), *out.glob(f"dense/.*{UNFINISHED}")):
            unfinished.unlink()  # of a process that was killed: this one holds the lock
        present = [p for p in out.iterdir() if p.name != ".lock"]
        if present and not resume:
            if not overwrite:
                raise CheckpointError(
                    f"{out} is not empty. Go on with --resume, replace it with --overwrite, or use another --out."
                )
            if not (out / record).exists():
                raise CheckpointError(
                    f"{out} holds files of something else (it has no {record}); --overwrite will not delete them. Use another --out."
                )
            for path in present:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield
