"""Who teaches a method that learns from another model: a program of a file, or the dense baseline of the same run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsify.calibration import evaluate
from sparsify.errors import DataError, TraceError
from sparsify.ir import Program
from sparsify.ir.classifier import classes
from sparsify.ir.evaluation import outputs_of
from sparsify.loading import Data
from sparsify.parts import metrics
from sparsify.parts.trees import rows_of


@dataclass(frozen=True)
class TeacherProgram:
    """A teacher, and what a run tells of it.

    Attributes:
        program: whose ``logits`` are learned from.
        name: ``dense baseline``, or the text of the recipe.
        fingerprint: SHA-256 of the file; empty for the baseline, which recipe and data decide.
    """

    program: Program
    name: str
    fingerprint: str

    def row(self, data: Data) -> dict[str, Any]:
        """For ``metrics.json``, with the accuracy on the test samples."""
        logits = evaluate(self.program, data.test)["logits"]
        accuracy = metrics.accuracy(logits, data.test.targets)
        return {"name": self.name, "fingerprint": self.fingerprint, "accuracy": accuracy}


def load_teacher(file: str, program: Program, data: Data) -> TeacherProgram:
    """The teacher in a file.

    Args:
        file: a saved program.
        program: that will learn.
        data: what it will learn on.

    Raises:
        LoadError: If the file is no program.
        DataError: If it takes other inputs than the program, or knows another number of classes.
    """
    teacher, example = Program.load(Path(file)).eval(), data.example()
    try:
        with torch.no_grad():
            answer = outputs_of(teacher, example)["logits"]
    except TraceError as error:
        raise DataError(f"the teacher {file} does not take these data: {error}") from error
    wanted = [rows_of(example), classes(program)]
    if list(answer.shape) != wanted:
        raise DataError(
            f"the teacher {file} returns logits of shape {list(answer.shape)}, the model {wanted}. Give a teacher of the same classes."
        )
    return TeacherProgram(teacher, file, hashlib.sha256(Path(file).read_bytes()).hexdigest())
