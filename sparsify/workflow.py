"""The one function that walks the rooms in order: load, trace, train, calibrate, export, verify, report."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import platform
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from sparsify.calibration import evaluate, fit
from sparsify.errors import CheckpointError, DataError, ExportError, TraceError
from sparsify.exporters import ExportResult, export
from sparsify.ir import Program, trace
from sparsify.ir.serialization import UNFINISHED, write_atomically
from sparsify.loading import Data, load_data, load_model
from sparsify.loading.inputs import example_inputs
from sparsify.methods import Method, dense
from sparsify.parts import metrics
from sparsify.passes import AttachCalibrationHead, Pipeline, recording
from sparsify.recipe import Recipe
from sparsify.reports import compare, layers, pass_rows, quality, sizes, write_report
from sparsify.training import train
from sparsify.version import __version__

ARTEFACTS = ("model.onnx", "metrics.json", "latency.json", "report.html", "recipe.toml", "program.sparsify")
Progress = Callable[[str, dict[str, Any]], None]


def run(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_step: Progress | None = None,
    on_decode: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Do the whole job and leave `ARTEFACTS` in ``out``.

    Args:
        recipe: resolved.
        out: folder of the run; must be new or empty unless ``resume`` or ``overwrite``.
        resume: go on from the last checkpoint, to the same bits.
        overwrite: delete what an earlier run left in ``out`` first.
        on_step: called with the part's name and the trainer's step row.
        on_decode: called while images are decoded, with how many are done of how many.

    Returns:
        What ``metrics.json`` holds, and under ``latency`` what ``latency.json`` holds: timings differ from run to run, metrics do not.

    Raises:
        CheckpointError: If the folder holds another run, something else, or is in use.
        SparsifyError: Any other of its kinds, with what to do.
    """
    torch.set_num_threads(recipe.threads)
    data = recipe_data(recipe, on_decode)
    with _folder(out, resume=resume, overwrite=overwrite):
        earlier = out / "recipe.toml"
        if resume and earlier.exists() and earlier.read_text() != recipe.to_toml():
            raise CheckpointError(
                f"{out} was started with another recipe; see {earlier}. Resume with it, or use another --out."
            )
        write_atomically(earlier, recipe.to_toml().encode())
        fingerprint, rows = data.fingerprint(), dict[str, Any]()
        logits: dict[str, Tensor] = {}
        models = {"dense": dense()} if recipe.baseline and recipe.method != "dense" else {}
        for name, method in {**models, "model": recipe.build_method()}.items():
            with recording() as record:
                row, logits[name] = _part(name, method, recipe, data, fingerprint, out, resume, on_step)
            rows[name] = {**row, "passes": pass_rows(record)}
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
            },
            **rows,
        }
        _write_json(out / "metrics.json", report)
        latency = measure_latency(out, data, threads=1)
        _write_json(out / "latency.json", latency)
        write_report(out)
    return {**report, "latency": latency}


def measure_latency(out: Path, data: Data, *, threads: int) -> dict[str, Any]:
    """The files of a run against each other at batch 1, on a held-out input, with the verdict on the model."""
    files = {name: out / f"{name}.onnx" for name in ("dense", "model") if (out / f"{name}.onnx").exists()}
    session_input = onnxruntime.InferenceSession(str(out / "model.onnx")).get_inputs()[0].name
    result = compare(files, inputs={session_input: data.example(1).numpy()}, threads=threads)
    return {**result.to_dict(), "verdict": result.verdict(result.timings[-1]) if len(files) > 1 else None}


def _write_json(path: Path, value: dict[str, Any]) -> None:
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
) -> tuple[dict[str, Any], Tensor]:
    """Train, calibrate and export one model of the run: its row of ``metrics.json``, and its logits on the test set."""
    folder = out if name == "model" else out / name
    program = traced(recipe, data)
    trained = train(
        method,
        program,
        data.train,
        data.validation,
        recipe.settings(),
        folder=folder,
        key=f"{recipe.hash()}-{fingerprint}-{name}",
        resume=resume,
        on_step=(lambda row: on_step(name, row)) if on_step else None,
    )
    Pipeline((AttachCalibrationHead(kind=recipe.calibrator),)).apply(program)
    log = fit(program, data.validation)
    program.save(folder / "program.sparsify")
    outputs = evaluate(program, data.test)
    logits = outputs["logits"]
    costs = program.costs()
    result = export(
        program,
        out / f"{name}.onnx",
        inputs=[data.example(64)],
        opset=recipe.opset,
        storage=recipe.storage,
        form=recipe.form,
        metadata={
            "method": method.name,
            "density": repr(costs.density),
            "pattern": method.pattern,
            "calibration": recipe.calibrator,
            "recipe_hash": recipe.hash(),
        },
    )
    size = sizes(program)
    row = {
        "method": method.name,
        **quality(logits.softmax(1), outputs["probabilities"], data.test.labels),
        **size,
        "nonzeros": result.nonzeros if program.masks() else size["active"],
        "bytes": result.bytes,
        "layers": layers(program),
        "calibration": log.to_dict(),
        "forms": dict(result.forms),
        "parity": {"ok": True, **dataclasses.asdict(result.parity)},
        "counts": trained.counts,
    }
    return row, logits


def export_saved(
    program: Path,
    out: Path,
    *,
    data: str,
    image_size: int | None = None,
    opset: int = 20,
    storage: str = "dense",
    form: str = "auto",
    overwrite: bool = False,
) -> ExportResult:
    """Export a saved program, proved on test inputs of ``data``, which no training has seen.

    Args:
        program: file of a run or of `Program.save`.
        out: the ONNX file.
        data: as for `load_data`; its inputs must be those the program was traced with.
        image_size: side in pixels to which a folder's images are resized.
        opset, storage, form: as for `sparsify.export`.
        overwrite: replace ``out``.

    Raises:
        ExportError: If ``out`` exists and ``overwrite`` is not given, or the file does not agree with the program.
        SparsifyError: If the program or the data cannot be read, or do not fit each other.
    """
    if out.is_dir():
        raise ExportError(f"{out} is a folder; --out names the ONNX file, e.g. {out / 'model.onnx'}.")
    if out.exists() and not overwrite:
        raise ExportError(f"{out} exists. Replace it with --overwrite, or use another --out.")
    loaded = Program.load(program).eval()
    if len(loaded.input_specs) != 1:
        names = ", ".join(spec.name for spec in loaded.input_specs)
        raise ExportError(
            f"{program} takes {len(loaded.input_specs)} inputs ({names}); this command gives one. Export it from Python with "
            f"sparsify.export(program, path, inputs=[...])."
        )
    test = load_data(data, seed=0, image_size=image_size).test
    inputs = test.batch(torch.arange(min(64, len(test))))[0]
    loaded.outputs(inputs)  # raises where the data are not the program's
    return export(loaded, out, inputs=[inputs], opset=opset, storage=storage, form=form)


def recipe_data(recipe: Recipe, on_decode: Callable[[int, int], None] | None = None) -> Data:
    """The recipe's data, split by its seed."""
    return load_data(
        recipe.data,
        seed=recipe.seed,
        holdout=recipe.holdout,
        test_holdout=recipe.test_holdout,
        image_size=recipe.image_size,
        normalise=recipe.normalise == "auto",
        on_progress=on_decode,
    )


def versions() -> dict[str, str]:
    """Of sparsify and of what a run's figures depend on."""
    return {
        "sparsify": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def traced(recipe: Recipe, data: Data) -> Program:
    """The recipe's model, seeded and traced on real inputs.

    Raises:
        TraceError: If it cannot be traced, or does not return one score per class.
        DataError: If the data have more classes than it has outputs.
    """
    torch.manual_seed(recipe.seed)
    weights = None if recipe.weights is None else Path(recipe.weights)
    model: nn.Module = load_model(recipe.model, weights=weights, trust_pickle=recipe.trust_pickle)
    example = data.example()
    program = trace(model, (example,))
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
def _folder(out: Path, *, resume: bool, overwrite: bool) -> Generator[None]:
    """Hold the run's folder for this process alone; refuse one that holds something else."""
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
            if not (out / "recipe.toml").exists():
                raise CheckpointError(
                    f"{out} holds files that are not a run's; --overwrite will not delete them. Use another --out."
                )
            for path in present:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield
