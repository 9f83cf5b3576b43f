"""The one function that walks the rooms in order: load, trace, train, calibrate, export, verify, report."""

from __future__ import annotations

import fcntl
import json
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn

from sparsify.calibration import evaluate, fit
from sparsify.errors import CheckpointError, DataError, TraceError
from sparsify.exporters import export
from sparsify.ir import Program, trace
from sparsify.ir.serialization import write_atomically
from sparsify.loading import Data, load_data, load_model
from sparsify.methods import Method, dense
from sparsify.parts import metrics
from sparsify.passes import AttachCalibrationHead, Pipeline
from sparsify.recipe import Recipe
from sparsify.training import train

ARTEFACTS = ("model.onnx", "metrics.json", "recipe.toml", "program.sparsify")
Progress = Callable[[str, dict[str, Any]], None]


def run(
    recipe: Recipe, out: Path, *, resume: bool = False, overwrite: bool = False, on_step: Progress | None = None
) -> dict[str, Any]:
    """Do the whole job and leave ``model.onnx``, ``metrics.json``, ``recipe.toml`` and ``program.sparsify`` in ``out``.

    Args:
        recipe: resolved.
        out: folder of the run; must be new or empty unless ``resume`` or ``overwrite``.
        resume: go on from the last checkpoint, to the same bits.
        overwrite: delete what an earlier run left in ``out`` first.
        on_step: called with the part's name and the trainer's step row.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        SparsifyError: Any of its kinds, with what to do.
    """
    torch.set_num_threads(recipe.threads)
    data = load_data(recipe.data, seed=recipe.seed)
    with _folder(out, resume=resume, overwrite=overwrite):
        earlier = out / "recipe.toml"
        if resume and earlier.exists() and earlier.read_text() != recipe.to_toml():
            raise CheckpointError(
                f"{out} was started with another recipe; see {earlier}. Resume with it, or use another --out."
            )
        write_atomically(earlier, recipe.to_toml().encode())
        rows: dict[str, Any] = {}
        if recipe.baseline and recipe.method != "dense":
            rows["dense"] = _part("dense", dense(), recipe, data, out, resume, on_step)
        rows["model"] = _part("model", recipe.build_method(), recipe, data, out, resume, on_step)
        report = {
            "recipe_hash": recipe.hash(),
            "seed": recipe.seed,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "onnxruntime": onnxruntime.__version__,
            },
            "data": {"name": recipe.data, "classes": data.classes, "mean": data.mean, "std": data.std},
            **rows,
        }
        write_atomically(out / "metrics.json", (json.dumps(report, indent=1, sort_keys=True) + "\n").encode())
    return report


def _part(
    name: str, method: Method, recipe: Recipe, data: Data, out: Path, resume: bool, on_step: Progress | None
) -> dict[str, Any]:
    """Train, calibrate and export one model of the run."""
    folder = out if name == "model" else out / name
    program = traced(recipe, data)
    history = train(
        method,
        program,
        data.train,
        data.validation,
        recipe.settings(),
        folder=folder,
        key=f"{recipe.hash()}-{name}",
        resume=resume,
        on_step=(lambda row: on_step(name, row)) if on_step else None,
    )
    Pipeline((AttachCalibrationHead(kind=recipe.calibrator),)).apply(program)
    log = fit(program, *data.validation)
    program.save(folder / "program.sparsify")
    x, y = data.test
    outputs = evaluate(program, x)
    before, after = outputs["logits"].softmax(1), outputs["probabilities"]
    costs = program.costs()
    result = export(
        program,
        out / f"{name}.onnx",
        inputs=[data.validation[0][:64]],
        opset=recipe.opset,
        storage=recipe.storage,
        metadata={
            "method": method.name,
            "density": repr(costs.density),
            "pattern": method.pattern,
            "calibration": recipe.calibrator,
            "recipe_hash": recipe.hash(),
        },
    )
    return {
        "accuracy": metrics.accuracy(before, y),
        "nll": metrics.nll(after, y),
        "brier": metrics.brier(after, y),
        "ece_before": metrics.ece(before, y),
        "ece_after": metrics.ece(after, y),
        "calibration": log.to_dict(),
        "bytes": result.bytes,
        "nonzeros": costs.active if costs.maskable else sum(s.shape and _size(s.shape) for s in program.maskable()),
        "maskable": costs.maskable,
        "density": costs.density,
        "macs": costs.macs_active,
        "parity": {"ok": True, "largest_error": result.parity.largest_error, "tolerance": result.parity.tolerance},
        "steps": history[-1]["step"],
    }


def traced(recipe: Recipe, data: Data) -> Program:
    """The recipe's model, seeded and traced on real inputs.

    Raises:
        TraceError: If it cannot be traced, or does not return one score per class.
    """
    torch.manual_seed(recipe.seed)
    model: nn.Module = load_model(recipe.model)
    program = trace(model, (data.train[0][:2],))
    with torch.no_grad():
        shape = program.eval().outputs(data.train[0][:2])["logits"].shape
    if len(shape) != 2:
        raise TraceError(f"{recipe.model} returns logits of shape {list(shape)}; a classifier returns [N, K].")
    if shape[1] < data.classes:
        raise DataError(
            f"{recipe.model} has {shape[1]} outputs, the data have {data.classes} classes. Widen the last layer."
        )
    return program


def _size(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


@contextmanager
def _folder(out: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
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
