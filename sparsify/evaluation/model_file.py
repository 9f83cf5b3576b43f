"""An ONNX file that is measured: what it takes, which outputs mean what, and what it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from sparsify.errors import EvaluationError, LoadError
from sparsify.evaluation.feeding import Feeding, Shape
from sparsify.reading.arrays import free_memory
from sparsify.runtime import open_file
from sparsify.untrusted import parse_json

BATCH, MOST_AT_ONCE = 256, 1 << 16
"""Samples per call if the file leaves it open, and the most if it does not."""
ROLES: Mapping[str, str] = {
    "logits": "scores of the classes, [N, K]",
    "probabilities": "probabilities of the classes, [N, K]",
    "prediction": "predicted numbers, [N, ...]",
    "lower": "lower ends of intervals, of the shape of the prediction",
    "upper": "upper ends of intervals, of the shape of the prediction",
    "ood_score": "a score per sample, [N], higher for inputs like those of training",
    "unknown": "the probability of the unknown class, [N]",
    "prediction_set": "the classes of each prediction set, bool [N, K]",
    "accept": "whether an answer is accepted, bool [N]",
}
"""What an output can mean, and what it holds; an output of that name means it unless the user names another."""
MEASURED = ("classification", "regression")
LONGEST = 1 << 16
"""Longest entry of a file's metadata that is read, in characters."""
TOLERANCE = 1e-3
"""How far probabilities of a sample may add up to another number than 1."""


@dataclass(frozen=True)
class OutputNames:
    """Names of outputs, for files that call them otherwise. None: the output of the role's own name, if there is one.

    Attributes:
        logits: scores of the classes, [N, K].
        probabilities: probabilities of the classes, [N, K].
        prediction: predicted numbers, [N, ...].
        ood_score: a score per sample, [N].
        lower_is_inside: ``ood_score`` is lower for inputs like those of training, as uncertainties are; its sign is changed.

    Examples:
        >>> from sparsify.evaluation import OutputNames
        >>> OutputNames(logits="output").named()
        {'logits': 'output'}
    """

    logits: str | None = None
    probabilities: str | None = None
    prediction: str | None = None
    ood_score: str | None = None
    lower_is_inside: bool = False

    def named(self) -> dict[str, str]:
        """Return the names that are given, by role."""
        return {role: name for role in ROLES if (name := getattr(self, role, None)) is not None}


@dataclass(frozen=True)
class ModelFile:
    """A file that was opened.

    Attributes:
        path: of the file.
        session: of ONNX Runtime.
        metadata: entries of the file's ``metadata_props``.
        roles: name of the output of each role that the file has.
        names: what the user said of the outputs.
        task: ``classification`` or ``regression``.
    """

    path: Path
    session: onnxruntime.InferenceSession
    metadata: Mapping[str, str]
    roles: Mapping[str, str]
    names: OutputNames
    task: str

    @property
    def input_kind(self) -> str:
        """The type of its input, as ``tensor(float)``."""
        return self.session.get_inputs()[0].type

    @property
    def input_shape(self) -> Shape:
        """The shape of its input; None: a size that varies."""
        return tuple(
            size if isinstance(size, int) and size > 0 else None for size in self.session.get_inputs()[0].shape
        )

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes that the metadata state."""
        if "classes" not in self.metadata:
            return None
        try:
            found = parse_json(self.metadata["classes"])
            assert isinstance(found, list) and all(isinstance(name, str) for name in found)
        except (ValueError, AssertionError):
            return None
        return found

    def described(self) -> dict[str, Any]:
        """Return what identifies the file, for ``metrics.json``."""
        told = ("method", "density", "pattern", "calibration", "calibration_note", "heads", "interval_level")
        return {
            "file": str(self.path),
            "bytes": self.path.stat().st_size,
            "sha256": _digest(self.path),
            "task": self.task,
            "outputs": dict(self.roles),
            "metadata": {key: self.metadata[key] for key in told if key in self.metadata},
        }


def open_model(path: Path, names: OutputNames | None = None, *, threads: int = 0, optional: bool = False) -> ModelFile:
    """Open a file and find out what its outputs mean.

    Args:
        path: of the file.
        names: names of outputs that are not called after their role.
        threads: number of threads of ONNX Runtime; 0 means one per core.
        optional: a name that the file lacks has no effect; otherwise it is refused.

    Raises:
        LoadError: If there is no such file, or ONNX Runtime cannot open it.
        EvaluationError: If it has several inputs, lacks an output that was named, has none that can be measured, or is for a task that
            cannot be measured.
    """
    names = names or OutputNames()
    session = open_file(path, threads=threads)
    given = session.get_inputs()
    if len(given) != 1:
        listed = ", ".join(value.name for value in given) or "nothing"
        raise EvaluationError(
            f"{path} has {len(given)} inputs ({listed}); only files of one input can be measured. `sparsify run` measures a model of "
            f"several inputs, and writes its figures to metrics.json."
        )
    metadata = {
        key: value for key, value in session.get_modelmeta().custom_metadata_map.items() if len(value) <= LONGEST
    }
    outputs = {value.name: value.type for value in session.get_outputs()}
    roles = {role: role for role in ROLES if role in outputs}
    for role, name in names.named().items():
        if name not in outputs and optional:
            continue
        if name not in outputs:
            raise EvaluationError(
                f"{path} has no output {name!r}, which should be its {role.replace('_', ' ')}; it has {', '.join(outputs)}."
            )
        roles = {**{key: value for key, value in roles.items() if value != name}, role: name}
    for name in roles.values():
        if not outputs[name].startswith("tensor("):
            raise EvaluationError(
                f"the output {name!r} of {path} is {outputs[name]}, not a tensor. Export the model so that it returns a tensor (with "
                f"skl2onnx: zipmap=False)."
            )
    task = _task(path, metadata, roles, outputs)
    return ModelFile(path, session, metadata, roles, names, task)


def _task(path: Path, metadata: Mapping[str, str], roles: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    task = metadata.get("task")
    if task is not None and task not in MEASURED:
        raise EvaluationError(
            f"{path} is for the task {task[:60]!r}; files for {' and '.join(MEASURED)} can be measured. `sparsify run` measures the others."
        )
    classes, numbers = bool(roles.keys() & {"logits", "probabilities"}), "prediction" in roles
    if classes == numbers:
        found = ", ".join(f"{name} ({kind})" for name, kind in outputs.items())
        what = "outputs of both classes and numbers" if classes else "no output that can be measured"
        raise EvaluationError(
            f"{path} has {what}; its outputs are {found}. Name one: --logits NAME or --probabilities NAME for classes, "
            f"--prediction NAME for numbers."
        )
    return "classification" if classes else "regression"


def answers(
    model: ModelFile,
    stored: np.ndarray,
    feed: Feeding,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Run a file over samples in batches; returns the outputs of its roles, numbers in float64.

    Args:
        model: the file.
        stored: the samples, [N, ...].
        feed: makes its inputs.
        on_progress: called after each batch with the number of samples that are done, and of all.

    Raises:
        EvaluationError: If the file fails on the inputs, or an output is not what its role says.
    """
    fixed, taken = model.input_shape[0] if model.input_shape else None, model.session.get_inputs()[0].name
    if fixed is not None and fixed > MOST_AT_ONCE:
        raise EvaluationError(
            f"{model.path} takes {fixed:,} samples per call; at most {MOST_AT_ONCE:,} are given. Export it with a batch that varies."
        )
    batch, count = fixed or BATCH, len(stored)
    wanted, parts = list(model.roles.values()), list[list[np.ndarray]]()
    for start in range(0, count, batch):
        rows = np.arange(start, min(start + batch, count))
        padded = rows if fixed is None else np.resize(rows, fixed)
        try:
            found = model.session.run(wanted, {taken: feed(stored[padded])})
        except Exception as error:  # the errors of ONNX Runtime have no common base class
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise EvaluationError(f"ONNX Runtime fails on {model.path} and {len(padded)} samples: {reason}.") from error
        values = [np.asarray(value) for value in found]
        for role, value in zip(model.roles, values, strict=True):
            if value.ndim == 0 or len(value) != len(padded):
                raise EvaluationError(
                    f"the output {model.roles[role]!r} of {model.path} has shape {list(value.shape)} for {len(padded)} samples. The role "
                    f"{role} needs {ROLES[role]}."
                )
        if not parts and (size := sum(value[:1].size for value in values) * count * 8) > free_memory():
            raise EvaluationError(
                f"the outputs of {model.path} for {count:,} samples need {size:,} bytes; less is free."
            )
        parts.append([value[: len(rows)] for value in values])
        if on_progress:
            on_progress(start + len(rows), count)
    columns = zip(model.roles, zip(*parts, strict=True), strict=True)
    return {role: _checked(model, role, np.concatenate(values)) for role, values in columns}


def _checked(model: ModelFile, role: str, value: np.ndarray) -> np.ndarray:
    """Return an output in the form that its role says.

    Raises:
        EvaluationError: If it has another form, or holds NaN.
    """
    where = f"the output {model.roles[role]!r} of {model.path}"
    flags = role in ("prediction_set", "accept")
    if flags != (value.dtype == np.bool_) or value.dtype.kind not in "bfiu":
        raise EvaluationError(f"{where} holds {value.dtype}. The role {role} needs {ROLES[role]}.")
    found = value if flags else value.astype(np.float64)
    if role in ("ood_score", "unknown", "accept") and found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    rank = 2 if role in ("logits", "probabilities", "prediction_set") else None if "[N]" not in ROLES[role] else 1
    if rank is not None and found.ndim != rank:
        raise EvaluationError(f"{where} has shape {list(found.shape)}. The role {role} needs {ROLES[role]}.")
    if not flags and (wrong := ~np.isfinite(found)).any() and not (role == "logits" and _ordered(found)):
        first = int(np.flatnonzero(wrong.reshape(len(found), -1).any(1))[0])
        raise EvaluationError(
            f"{where} is NaN or infinite for {int(wrong.reshape(len(found), -1).any(1).sum()):,} of {len(found):,} samples, first sample "
            f"{first}. Look at how the inputs are prepared; a figure of such outputs means nothing."
        )
    if role == "probabilities" and (found.min() < -TOLERANCE or abs(found.sum(1) - 1).max() > TOLERANCE):
        raise EvaluationError(
            f"{where} holds no probabilities: they go from {found.min():g} to {found.max():g}, and those of a sample add up to between "
            f"{found.sum(1).min():g} and {found.sum(1).max():g}. Name scores of the classes with --logits."
        )
    return -found if role == "ood_score" and model.names.lower_is_inside else found


def _ordered(logits: np.ndarray) -> bool:
    """Return whether only excluded classes are infinite: -inf beside a finite logit."""
    return bool((np.isfinite(logits) | (logits == -np.inf)).all() and np.isfinite(logits).any(1).all())


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror or error}.") from error
