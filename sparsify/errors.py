"""Every error `sparsify` raises on purpose. Imports nothing of the package.

Each carries a message that says what was expected, what was found, where, and what to do next. Every class here
except `VerificationError` means the input can be mended by the user; the command prints the message and exits with code 2.
"""

from __future__ import annotations

from typing import Any


class SparsifyWarning(UserWarning):
    """Base of all that is said and does not stop the work; the command prints it as a note."""


class LoadWarning(SparsifyWarning):
    """Something was read in a way the user should know of."""


class ExportWarning(SparsifyWarning):
    """A file was written, but not the one that was asked for."""


class PluginWarning(SparsifyWarning):
    """An installed plug-in could not be loaded."""


class SparsityWarning(SparsifyWarning):
    """Less of the model becomes sparse than what was asked for may suggest."""


class SparsifyError(Exception):
    """Base of all errors raised on purpose."""


class RecipeError(SparsifyError):
    """A recipe or command-line option is unknown, out of range or contradictory."""


class TraceError(SparsifyError):
    """A model cannot be traced, or its trace does not behave like the eager model."""


class PatternError(SparsifyError):
    """A sparsity pattern is misspelt or does not fit a weight's shape."""


class AllocationError(SparsifyError):
    """A density cannot be reached with the given weights, floors and caps."""


class PassError(SparsifyError):
    """A pass is unknown, misconfigured, or does not apply to the program it was given."""


class LoadError(SparsifyError):
    """A model, checkpoint or saved program is missing, corrupt, or refused because it could execute code."""


class DataError(SparsifyError):
    """A data set is missing, malformed or unusable for the model."""


class CheckpointError(SparsifyError):
    """A run directory or checkpoint cannot be used for what was asked."""


class TaskError(SparsifyError):
    """A task is unknown or misconfigured, or no single one fits the data and the outputs."""


class ContractError(SparsifyError):
    """A method, a pass, a task or a calibration head does not keep what every one of its kind promises (`sparsify.contracts`)."""


class TrainingError(SparsifyError):
    """Training cannot go on: the loss is not finite, or the loop calls the trainer in the wrong order."""


class ExportError(SparsifyError):
    """The ONNX file could not be produced or does not agree with the program."""


class UnfinishedError(SparsifyError):
    """Training is done and its model saved, but something that comes after it failed; the message says what, and how to make it.

    Attributes:
        report: content of ``metrics.json`` and, under ``latency``, of ``latency.json``, where the model's file was made; else None.
    """

    def __init__(self, message: str, report: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = report


class ReportError(SparsifyError):
    """A report cannot be built: a file of the run is missing, damaged, or of another version."""


class VerificationError(SparsifyError):
    """The program breaks a rule of its stage. This is a defect of a pass or of `sparsify`, not of the user's input."""


class TrainingWarning(SparsifyWarning):
    """Training goes on, but not quite as the loop may think: a step was skipped, or a weight gets no gradient."""
