"""Makes the files of a program: exports it in fp32 and int8 and measures the files, on the data it was trained with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from sparsify.calibration import evaluate
from sparsify.errors import ExportError
from sparsify.exporters import ExportResult, Preprocessing, export
from sparsify.exporters.int8 import Int8
from sparsify.exporters.writing import add_metadata
from sparsify.files import strict_json
from sparsify.ir import Program
from sparsify.ir.evaluation import joined
from sparsify.loading import Data, load_data, load_ood
from sparsify.methods import Method
from sparsify.parts.samples import Samples
from sparsify.parts.trees import Tree, rows_of, tensors
from sparsify.reports import compare, task_quality
from sparsify.reports.latency_form import LatencyFile
from sparsify.runs.recipe import AUTO, Recipe
from sparsify.tasks import Classification, Task
from sparsify.tasks.stored import measurable
from sparsify.training import StepTimes

CALIBRATION = 256
"""Number of training samples on which int8 ranges are observed."""
HELD_OUT = 2048
"""Largest number of held-out samples for comparing an int8 file with the program and for fitting its calibration head again."""
BESIDE = (
    "accuracy", "nll_after", "brier_after", "ece_before", "ece_after", "figures", "figures_after", "interval", "prediction_set", "accept",
)  # fmt: skip
"""What is told of the program beside its int8 file."""
UNTOLD = ("reliability", "class_accuracy", "risk_coverage")
"""Measures of a program that are not made of its int8 file: lists for plots and for tables by class."""
ACCEPTED = 0.95
"""Share of validation samples whose ``ood_score`` is at least the threshold that is stored in the file."""
MOST_BYTES = 256 * 2**20
"""Bytes of the samples of either kind."""


def feeding(data: Data, input_type: str = "float", task: str = "classification") -> dict[str, Any]:
    """Make the arguments of `sparsify.export` that say how to feed a file for these data and how to read its outputs.

    Args:
        data: the data that the program was trained on.
        input_type: ``float``, or ``uint8``, for a file that takes images as bytes [N, H, W, C], as image libraries store them.
        task: the name of the task.

    Raises:
        ExportError: If ``uint8`` is asked for and the data were not given as bytes.
    """
    if input_type == "uint8" and data.given_as != "bytes":
        raise ExportError(
            f"a file that takes uint8 needs data given as bytes, found {data.given_as}, so it is unknown how bytes become inputs. "
            f"Export with input float, or from Python with sparsify.Preprocessing."
        )
    names = data.class_names or tuple(map(str, range(data.classes)))
    found: dict[str, Any] = {"classes": names, "task": task, "input_type": input_type}
    if data.given_as == "prepared" or (data.given_as == "numbers" and data.statistics is None):
        return found
    mean, std = (tuple(value.tolist()) for value in data.statistics) if data.statistics else ((0.0,), (1.0,))
    layout = "NHWC" if input_type == "uint8" and data.example(1).ndim == 4 else "NCHW"
    scale = 255.0 if data.given_as == "bytes" else 1.0
    return found | {"preprocessing": Preprocessing(mean=mean, std=std, scale=scale, layout=layout)}


def input_row(data: Data, name: str, *, input_type: str, array: str) -> dict[str, Any]:
    """Describe how to feed a file for these data, for ``metrics.json``.

    Args:
        data: the data that the program was trained on.
        name: name of the file's input.
        input_type: as for `feeding`.
        array: name of the array with the test inputs, if the data are arrays.
    """
    step, example = feeding(data, input_type).get("preprocessing"), data.example(64)
    assert isinstance(example, Tensor)  # those of several inputs are told by `several_rows`
    layout = "NF" if example.ndim == 2 else "N..." if example.ndim != 4 else step.layout if step else "NCHW"
    return {
        "name": name,
        "type": input_type,
        "dtype": str(example.dtype).removeprefix("torch."),
        "shape": list(example.shape[1:]),
        "layout": layout if input_type == "uint8" or example.ndim != 4 else "NCHW",
        "given_as": data.given_as,
        "stored": data.stored,
        "array": array,
        "scale": step.scale if step else None,
        "mean": list(step.mean) if step and data.statistics else None,
        "std": list(step.std) if step and data.statistics else None,
        "range": [float(example.min()), float(example.max())],
    }


def several_rows(program: Program, data: Data, array: str) -> list[dict[str, Any]]:
    """Describe the inputs of a file with several inputs, or with one by name, for ``metrics.json``, in the order of the file.

    Args:
        program: the program of the file.
        data: the data that it was trained on.
        array: as for `input_row`; arrays of an archive are named after it, as ``x_test.ids``.

    Returns:
        Name, type and shape of each input.
    """
    values = program.input_tensors(data.example(64))
    return [
        {
            "name": spec.name,
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape[1:]),
            **({"array": f"{array}.{spec.name}"} if data.stored == "named" else {}),
        }
        for spec, value in zip(program.input_specs, values, strict=True)
    ]


def write_int8(
    program: Program,
    path: Path,
    data: Data,
    *,
    task: Task | None = None,
    opset: int = 20,
    form: str = "auto",
    selection: str = "by-batch",
    batch: int = 1,
    threads: int = 1,
    input_type: str = "float",
    metadata: Mapping[str, str] | None = None,
    fitted: Mapping[str, Any] | None = None,
) -> tuple[ExportResult, dict[str, Any]]:
    """Export ``program`` in int8 and measure the file on the test samples.

    Ranges come from training samples, and the calibration head is fitted again on validation samples.

    Args:
        program: the program with its calibration head, if it has one.
        path: path of the file.
        data: the data, split as they were for training.
        task: what the outputs mean; None: the program's task, or classification if it has none.
        opset, form, selection, batch, threads, input_type, metadata: as for `sparsify.export`.
        fitted: log of the program's heads as ``metrics.json`` holds it, or {} if there are none: the file gets the metadata of
            `fitted_metadata`, measured on itself. None: it does not get them.

    Returns:
        The result, and the figures of the file on the test samples for ``metrics.json``, without timings.

    Raises:
        ExportError: As `sparsify.export`.
    """
    task = task or program.task or Classification()
    held_out = data.validation.batch(_first(data.validation, HELD_OUT))
    spread, fed = calibration_rows(data, batch), feeding(data, input_type, task.name)
    result = export(
        program,
        path,
        inputs=program.input_tensors(data.example(64)),
        opset=opset,
        form=form,
        selection=selection,
        precision="int8",
        calibration=program.input_tensors(data.train.batch(spread * (len(data.train) // len(spread))).inputs),
        held_out=program.input_tensors(held_out.inputs),
        labels=held_out.target if isinstance(held_out.target, Tensor) and task.output is not None else None,
        batch=batch,
        threads=threads,
        metadata=metadata,
        **{**fed, "task": task},
    )
    assert result.int8 is not None
    threshold = None
    if fitted is not None:
        if "ood_score" in program.output_names("eval"):
            threshold = accepting(run_file(path, data.validation, fed.get("preprocessing"))["ood_score"])
        add_metadata(path, fitted_metadata(_fitted_again(fitted, result.int8), threshold))
        result = dataclasses.replace(result, bytes=path.stat().st_size)
    assert result.int8 is not None
    outputs, wanted = run_file(path, data.test, fed.get("preprocessing")), evaluate(program, data.test)
    figures, read = _measured(program, task, wanted, data.test.targets), task.output
    row = {
        **_measured(program, task, outputs, data.test.targets),
        "fp32": {key: value for key, value in figures.items() if key in BESIDE},
        "bytes": result.bytes,
        **({} if threshold is None else {"ood_threshold": threshold}),
        "form": result.int8.chosen.name,
        "layers": dict(result.int8.chosen.layers),
        "batch": batch,
        "threads": threads,
        "agreement": None if read is None else task.agreement(wanted[read], outputs[read]),
        "held_out": {
            "samples": rows_of(held_out.inputs),
            "decisions": result.int8.decisions,
            "agreed": result.int8.agreed,
            "largest_error": result.int8.largest_error,
            "outputs": dict(result.int8.errors),
            **result.int8.figures,
        },
        "passed_over": dict(result.int8.passed_over),
        "refused": result.int8.refused,
        "head": result.int8.head,
    }
    return result, row


def calibration_rows(data: Data, batch: int) -> Tensor:
    """Return the rows of the training samples on which int8 ranges are observed: `CALIBRATION`, or ``batch`` if that is more.

    There are fewer where the data have fewer, or where more would exceed `MOST_BYTES`.
    """
    return _first(data.train, max(CALIBRATION, batch))


def _measured(program: Program, task: Task, outputs: Mapping[str, Tensor], targets: Any) -> dict[str, Any]:
    """Compute the figures of the test samples; empty for a custom task whose functions are missing."""
    if not measurable(task):
        return {}
    read = program.reading(None, "eval", list(outputs.values())) if task.output is None else outputs[task.output]
    known = {"probabilities": read.softmax(1), **outputs} if task.name == "classification" else outputs
    found = task_quality(task, read, known, targets)
    return {key: value for key, value in found.items() if key not in UNTOLD}


def run_metadata(program: Program, recipe: Recipe, data: Data, method: Method) -> dict[str, str]:
    """Make the metadata of a run's files.

    Args:
        program: the trained program with its head.
        recipe: recipe of the run.
        data: data of the recipe.
        method: the method that the program was trained with.
    """
    return {
        "method": method.name,
        "density": repr(program.costs().density),
        "pattern": method.pattern,
        **({} if recipe.task == "classification" else {"task_options": str(recipe.build_task())}),
        "recipe_hash": recipe.hash(),
        **({"preparation": json.dumps(data.preparation)} if data.preparation else {}),
    }


def fitted_metadata(log: Mapping[str, Any] | None, threshold: float | None) -> dict[str, str]:
    """Make the metadata of a run's files about what was fitted on validation samples.

    Args:
        log: log of the calibration head as ``metrics.json`` holds it (`CalibrationLog.to_dict`), if there is one.
        threshold: the result of `ood_threshold`, or of `accepting` for the outputs of the file.
    """
    found = {} if threshold is None else {"ood_threshold": repr(threshold)}
    if log and log.get("figures"):
        told = {**{key: log[key] for key in ("nll_before", "nll_after")}, **log["figures"]}
        found["calibration_fit"] = strict_json({key: value for key, value in told.items() if value is not None})
    return found | ({"calibration_note": log["note"]} if log and log.get("note") else {})


def _fitted_again(log: Mapping[str, Any], found: Int8) -> Mapping[str, Any]:
    """Return the log of a program's head for its int8 file: that of the new fit, if there was one."""
    if not log or found.fit is None:
        return log
    losses = {key: found.fit.get(key) for key in ("nll_before", "nll_after")}
    return {**log, **losses, "figures": {k: v for k, v in found.fit.items() if k not in losses}, "note": found.note}


def ood_threshold(program: Program, data: Data) -> float | None:
    """Find the ``ood_score`` that a share `ACCEPTED` of the validation samples reaches; None for a program without that output."""
    if "ood_score" not in program.output_names("eval"):
        return None
    return accepting(evaluate(program, data.validation)["ood_score"])


def accepting(scores: Tensor) -> float:
    """Find the number that a share `ACCEPTED` of the scores, float64 [N], reaches."""
    return float(scores.quantile(1 - ACCEPTED))


def trials(found: Int8 | None) -> dict[str, Any]:
    """Return the timings by which an int8 file was chosen, for ``latency.json``; {} for an fp32 file."""
    if found is None:
        return {}
    files = [{"name": trial.name, "milliseconds": trial.milliseconds} for trial in found.trials]
    layers = {name: dict(timed) for name, timed in found.layers.items()}
    return {"batch": found.batch, "threads": found.threads, "files": files, "layers": layers}


def run_file(
    path: Path, samples: Samples, preprocessing: Preprocessing | None = None, *, batch_size: int = 256
) -> dict[str, Tensor]:
    """Run an ONNX file over all ``samples`` in batches; returns outputs as float64. ``preprocessing`` is for files that take bytes."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    rows = torch.arange(len(samples)).split(batch_size)
    parts = [session.run(outputs, _fed(session, samples.batch(part).inputs, preprocessing)) for part in rows]
    columns = zip(outputs, zip(*parts, strict=True), strict=True)
    return {key: joined([torch.from_numpy(value) for value in values]).double() for key, values in columns}


def _fed(session: onnxruntime.InferenceSession, inputs: Tree, preprocessing: Preprocessing | None) -> dict[str, Any]:
    """Convert inputs of a program to those of its file, by name."""
    taken = [given.name for given in session.get_inputs()]
    if preprocessing is not None and session.get_inputs()[0].type == "tensor(uint8)":
        inputs = preprocessing.stored(inputs)
    if isinstance(inputs, Mapping) and set(taken) <= inputs.keys():
        return {name: inputs[name].numpy() for name in taken}
    return {name: value.numpy() for name, value in zip(taken, tensors(inputs), strict=True)}


def _first(samples: Samples, most: int) -> Tensor:
    """Return the first rows, limited by ``most`` and `MOST_BYTES`, but at least 16 if there are as many."""
    one = tensors(samples.batch(torch.arange(1)).inputs)
    room = max(16, MOST_BYTES // max(sum(value.numel() * value.element_size() for value in one), 1))
    return torch.arange(min(len(samples), most, room))


def measure_latency(out: Path, data: Data, *, threads: int, batch: int = 1) -> dict[str, Any]:
    """Time the files of a run against each other on held-out inputs; returns the timings and the verdict on the model.

    Held-out inputs are repeated where there are fewer than ``batch``: the time does not depend on their values.
    """
    names = [name for name in ("dense", "model", "dense-int8", "model-int8") if (out / f"{name}.onnx").exists()]
    files = {name: out / f"{name}.onnx" for name in names}
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    takes_bytes = session.get_inputs()[0].type == "tensor(uint8)"
    inputs = data.validation.batch(torch.arange(batch) % len(data.validation)).inputs
    given = _fed(session, inputs, feeding(data, "uint8")["preprocessing"] if takes_bytes else None)
    result = compare(files, inputs=given, threads=threads)
    model = next(row for row in result.timings if row.name == "model")
    return {**result.to_dict(), "verdict": result.verdict(model) if "dense" in files else None}


def training_times(earlier: Path, times: Mapping[str, StepTimes | None]) -> dict[str, Any]:
    """Return the times of training steps by model, for ``latency.json``; a model that made no step now keeps those of an earlier file.

    Args:
        earlier: the earlier ``latency.json`` of the folder, which may be missing.
        times: by model, what training measured.
    """
    try:
        known = LatencyFile.model_validate_json(earlier.read_bytes()).training or {}
    except (OSError, ValueError):
        known = {}
    found = {name: (known[name].model_dump() if name in known else None) for name in times}
    found |= {name: row.to_dict() for name, row in times.items() if row is not None}
    return {name: row for name, row in found.items() if row is not None}


def recipe_data(recipe: Recipe, on_decode: Callable[[int, int], None] | None = None) -> Data:
    """Read the recipe's data, split by its seed, and its out-of-distribution inputs."""
    recipe.build_task()  # raises where keys do not fit it, before anything is read
    data = read_data(recipe, on_decode)
    sets = {
        key: {name: load_ood(text, data, on_progress=on_decode) for name, text in recipe.ood_names(key).items()}
        for key in ("ood", "ood_validation")
    }
    return dataclasses.replace(data, **sets)


def read_data(recipe: Recipe, on_decode: Callable[[int, int], None] | None = None) -> Data:
    """Read the recipe's data, split by its seed, without out-of-distribution inputs; with task ``auto``, accept targets of any task."""
    return load_data(
        recipe.data,
        seed=recipe.seed,
        holdout=recipe.holdout,
        test_holdout=recipe.test_holdout,
        train_samples=recipe.train_samples,
        image_size=recipe.image_size,
        channels=recipe.channels,
        normalise=recipe.normalise == "auto",
        mean=recipe.mean,
        std=recipe.std,
        task=None if recipe.task == AUTO else recipe.task,
        target=recipe.target,
        category_columns=recipe.category_columns,
        ignore_columns=recipe.ignore_columns,
        on_progress=on_decode,
    )
