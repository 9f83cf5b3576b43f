"""Measures an ONNX file on data: the file is run in ONNX Runtime, and every figure comes from what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.arguments import checked
from sparsify.errors import EvaluationError
from sparsify.evaluation.feeding import Feeding, Preparation, feeding, stated
from sparsify.evaluation.measures import Answered, class_changes, differences, measured
from sparsify.evaluation.model_file import ModelFile, OutputNames, answers, open_model
from sparsify.evaluation.samples import Samples, read_outside, read_samples
from sparsify.evaluation.shifting import check_shiftable, under_shift
from sparsify.reading.ood import short_names
from sparsify.reading.shifts import CONSTANTS
from sparsify.version import versions

Progress = Callable[[int, int], None]


@checked(EvaluationError)
def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    ood: Sequence[str | Path] = (),
    against: str | Path | None = None,
    names: OutputNames | None = None,
    preparation: Preparation | None = None,
    part: str = "test",
    shift: bool = False,
    image_size: int | None = None,
    threads: int = 0,
    on_decode: Progress | None = None,
) -> dict[str, Any]:
    """Measure an ONNX file, and compare it with a second one on the same samples. Needs no torch.

    Args:
        model: path of the file.
        data: ``digits``, or data as `sparsify run` reads them: an .npz file with ``x_<part>`` and ``y_<part>``, or encoded images; or a
            folder of images, ``test/<class>/*``, ``val`` for ``validation``.
        ood: sets of out-of-distribution inputs: .npz files, ``photos`` or ``digits``.
        against: path of a second file.
        names: what the outputs are called, for files of other tools. It holds for the second file too, as far as it has such outputs.
        preparation: how stored values become inputs. For the second file, it only holds if that does not state its own.
        part: ``test``, ``validation`` or ``train``.
        shift: measure a classifier on images under noise, blur and brightness too, each at five severities
            (`sparsify.reading.shifts.shifted`); this takes 15 more passes over the samples.
        image_size: side in pixels to which encoded images are resized.
        threads: number of threads of ONNX Runtime; 0 means one per core.
        on_decode: called while encoded images are decoded.

    Returns:
        What ``metrics.json`` holds: ``model`` and, with a second file, ``against``, each as `sparsify.evaluation.measures.measured`;
        ``differences`` and ``changes`` between them; ``data``; ``versions``. With ``shift``, each file has ``shift``: figures of
        `sparsify.figures.shift` by kind, a list by severity, and those of the samples as they are, ``unchanged``.

    Raises:
        LoadError: If a file is missing, or ONNX Runtime cannot open it.
        DataError: If data are missing or malformed.
        EvaluationError: If data and file do not fit, an output is not what its name says, an option is out of range, or inputs that are
            no images should be shifted.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> from sparsify.evaluation import evaluate
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> program = sp.trace(model, (torch.rand(2, 1, 8, 8),)).eval()
        >>> result = sp.export(program, "model.onnx", inputs=torch.rand(8, 1, 8, 8), preprocessing=sp.Preprocessing())
        >>> evaluate("model.onnx", "digits")["data"]["samples"]
        360
    """
    names, given = names or OutputNames(), preparation or Preparation()
    files = {"model": open_model(Path(model), names, threads=threads)}
    samples = read_samples(str(data), files["model"], part=part, image_size=image_size, on_progress=on_decode)
    _same_classes(files["model"], samples)
    if shift:
        check_shiftable(files["model"], samples)
    sets = short_names([str(text) for text in ood])
    outside = {name: read_outside(text, samples, on_progress=on_decode) for name, text in sets.items()}
    if against is not None:
        files["against"] = open_model(Path(against), names, threads=threads, optional=True)
        _same_kind(files["model"], files["against"])
        _same_classes(files["against"], samples)
    feeds = {
        name: _feeding(file, samples, given if name == "model" else _second(file, given))
        for name, file in files.items()
    }
    found = {name: _answered(file, samples, outside, feeds[name]) for name, file in files.items()}
    report: dict[str, Any] = {
        "data": {
            "name": samples.name,
            "part": samples.part,
            "samples": len(samples.inputs),
            "fingerprint": samples.fingerprint(),
            "class_names": list(_class_names(files["model"], samples) or ()),
            "ood": {name: {"data": sets[name], "samples": len(values)} for name, values in outside.items()},
            **({"shift": {kind: list(values) for kind, values in CONSTANTS.items()}} if shift else {}),
        },
        "versions": versions("numpy", "onnxruntime"),
    }
    for name, file in files.items():
        report[name] = {**file.described(), **measured(found[name], samples.targets, str(file.path))}
        if shift:
            report[name]["shift"] = under_shift(file, samples, feeds[name], found[name])
    if against is not None:
        report |= _compared(found, samples, files)
    return report


def _compared(found: Mapping[str, Answered], samples: Samples, files: Mapping[str, ModelFile]) -> dict[str, Any]:
    """Return the differences of two files."""
    ours, theirs = found["model"], found["against"]
    paths = str(files["model"].path), str(files["against"].path)
    if files["model"].task == "classification" and ours.final().shape != theirs.final().shape:
        raise EvaluationError(
            f"{paths[0]} has {ours.final().shape[1]} classes, {paths[1]} {theirs.final().shape[1]}. Compare files for the same classes."
        )
    rows = {"differences": differences(ours, theirs, samples.targets, paths)}
    changed = files["model"].task == "classification"
    return rows | ({"changes": class_changes(ours, theirs, samples.targets)} if changed else {})


def _feeding(file: ModelFile, samples: Samples, given: Preparation) -> Feeding:
    return feeding(
        file.input_kind, file.input_shape, samples.inputs, file.metadata, given, where=str(file.path), data=samples.name
    )


def _answered(file: ModelFile, samples: Samples, outside: Mapping[str, np.ndarray], feed: Feeding) -> Answered:
    return Answered(
        answers(file, samples.inputs, feed), {name: answers(file, values, feed) for name, values in outside.items()}
    )


def _second(file: ModelFile, given: Preparation) -> Preparation:
    """Return the preparation of a second file: the given one, unless the file states its own."""
    own = stated(file.metadata, str(file.path)) is not None or file.input_kind == "tensor(uint8)"
    return Preparation() if own else given


def _same_kind(first: ModelFile, second: ModelFile) -> None:
    if first.task != second.task:
        raise EvaluationError(
            f"{first.path} is for {first.task}, {second.path} for {second.task}. Compare files for the same task."
        )


def _class_names(file: ModelFile, samples: Samples) -> Sequence[str] | None:
    return samples.class_names or file.classes


def _same_classes(file: ModelFile, samples: Samples) -> None:
    """Refuse data whose class names differ from those that the file states; a file that only numbers its classes states none."""
    ours, theirs = file.classes, samples.class_names
    if file.task != "classification" or ours is None or theirs is None or ours == [str(k) for k in range(len(ours))]:
        return
    if list(theirs) != ours:
        at = next(
            (k for k, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
            min(len(ours), len(theirs)),
        )
        shown = [names[at] if at < len(names) else "nothing" for names in (ours, theirs)]
        raise EvaluationError(
            f"class {at} is {shown[0]!r} in {file.path} and {shown[1]!r} in {samples.name}. Give the data that the file is for, with the "
            f"classes in the same order."
        )
