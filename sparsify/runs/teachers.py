"""Teachers of methods that learn from another model, or compare with it: a saved program, or the dense baseline of the same run."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsify.calibration import evaluate
from sparsify.errors import DataError, TraceError
from sparsify.figures import metrics
from sparsify.ir import Program
from sparsify.ir.evaluation import outputs_of
from sparsify.loading import Data
from sparsify.methods import Method
from sparsify.tasks import Task


@dataclass(frozen=True)
class TeacherProgram:
    """A teacher, and what a run reports about it.

    Attributes:
        program: the teacher; the method learns from its ``logits``, or from the output that the task reads.
        name: ``dense baseline``, or the text of the recipe.
        fingerprint: SHA-256 of the file; empty for the baseline, which recipe and data determine.
    """

    program: Program
    name: str
    fingerprint: str

    def row(self, task: Task, data: Data) -> dict[str, Any]:
        """Return an entry for ``metrics.json``: the teacher's accuracy on the test samples, or the figures of another task."""
        read = evaluate(self.program, data.test)[str(task.output)]
        known = {"name": self.name, "fingerprint": self.fingerprint}
        if task.name == "classification":
            return {**known, "accuracy": metrics.accuracy(read, data.test.targets)}
        found = task.figures(read, data.test.targets)
        return {**known, "figures": {key: value if math.isfinite(value) else None for key, value in found.items()}}


def load_teacher(file: str, program: Program, data: Data, task: Task) -> TeacherProgram:
    """Load a teacher from a file.

    Args:
        file: path of a saved program.
        program: the program that will learn.
        data: the data that it will learn on.
        task: what the outputs of both mean.

    Raises:
        LoadError: If the file is not a program.
        DataError: If the teacher is for another task, does not accept the inputs, or returns an output of another shape.
    """
    teacher, example, reads = Program.load(Path(file)).eval(), data.example(), str(task.output)
    if reads not in teacher.output_names("eval") or (teacher.task is not None and teacher.task.name != task.name):
        said = f"is of task {teacher.task.name!r} and " if teacher.task is not None else ""
        raise DataError(
            f"the teacher {file} {said}returns {', '.join(teacher.output_names('eval'))}, and the model is of task {task.name!r}, which "
            f"reads {reads!r}. Give a teacher of the same task."
        )
    try:
        with torch.no_grad():
            answer = outputs_of(teacher, example)[reads]
    except TraceError as error:
        raise DataError(f"the teacher {file} does not take these data: {error}") from error
    with torch.no_grad():
        wanted = list(outputs_of(program, example)[reads].shape)
    if list(answer.shape) != wanted:
        raise DataError(
            f"the teacher {file} returns {reads} of shape {list(answer.shape)}, the model {wanted}. Give a teacher of the same classes, or "
            f"of the same predictions."
        )
    return TeacherProgram(teacher, file, hashlib.sha256(Path(file).read_bytes()).hexdigest())


def referred(method: Method, teacher: TeacherProgram | None, data: Data) -> Method:
    """Return a method whose loss knows the recall of each class of the teacher on the training samples, without augmentation.

    A method that compares with no other model, or for which there is none, stays unchanged.
    """
    if method.reference is None or teacher is None:
        return method
    logits = evaluate(teacher.program, data.train)["logits"]
    recalls = metrics.class_accuracy(logits, data.train.targets)
    return dataclasses.replace(method, objective=method.reference(recalls), reference=None)
