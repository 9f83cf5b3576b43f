"""All errors that `sparsify` raises on purpose. Imports nothing from the package.

Each message says what was expected, what was found and where, and what to do next. All errors except `VerificationError` concern
something that the user can correct; the command prints the message and exits with code 2.
"""

from __future__ import annotations

from typing import Any


class SparsifyWarning(UserWarning):
    """Base class of all warnings; the command prints them as notes and goes on."""


class LoadWarning(SparsifyWarning):
    """Data or a model was read in a way that the user should know about."""


class ExportWarning(SparsifyWarning):
    """A file was written, but not the one that was asked for."""


class PluginWarning(SparsifyWarning):
    """An installed plug-in could not be loaded."""


class SparsityWarning(SparsifyWarning):
    """Less of the model becomes sparse than the request suggests."""


class SparsifyError(Exception):
    """Base class of all errors that are raised on purpose."""


class RecipeError(SparsifyError):
    """A recipe or command-line option is unknown, out of range or contradictory."""


class TraceError(SparsifyError):
    """A model cannot be traced, or its trace does not behave like the eager model."""


class PatternError(SparsifyError):
    """A sparsity pattern is misspelt or does not fit a weight's shape."""


class AllocationError(SparsifyError):
    """A density cannot be reached with the given weights, floors and caps."""


class PassError(SparsifyError):
    """A pass is unknown, misconfigured, or does not apply to the given program."""


class LoadError(SparsifyError):
    """A model, checkpoint or saved program is missing, corrupt, or refused because it could execute code."""


class DataError(SparsifyError):
    """A data set is missing, malformed or unusable for the model."""


class CheckpointError(SparsifyError):
    """A run folder or a checkpoint cannot be used as requested."""


class TaskError(SparsifyError):
    """A task is unknown or misconfigured, or data and outputs fit no task or several."""


class ContractError(SparsifyError):
    """A method, pass, task or calibration head breaks a promise that all of its kind make (`sparsify.contracts`)."""


class TrainingError(SparsifyError):
    """Training cannot continue: the loss is not finite, or the loop calls the trainer in the wrong order."""


class ExportError(SparsifyError):
    """The ONNX file could not be written, or it does not agree with the program."""


class UnfinishedError(SparsifyError):
    """Training is finished and the model is saved, but a later part failed; the message names what is missing and how to make it.

    Attributes:
        report: content of ``metrics.json`` and, under ``latency``, of ``latency.json``; None if the model's file was not written.
    """

    def __init__(self, message: str, report: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = report


class EvaluationError(SparsifyError):
    """A file cannot be measured: its inputs, outputs or classes do not fit the data, or the names and options that were given."""


class ReportError(SparsifyError):
    """A report cannot be built: a file of the run is missing, damaged, or of another version."""


class VerificationError(SparsifyError):
    """The program breaks a rule of its stage. This is a defect of a pass or of `sparsify`, not a mistake in the user's input."""


class TrainingWarning(SparsifyWarning):
    """Training continues, but not quite as the loop may expect: a step was skipped, or a weight gets no gradient."""
