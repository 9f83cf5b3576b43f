"""What an export is asked for, checked before anything is made."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from sparsify.errors import ExportError, TrainingWarning
from sparsify.exporters.fused_products import fuse_products
from sparsify.exporters.graphs import rewritten
from sparsify.exporters.preprocessing import Preprocessing
from sparsify.exporters.proof import Reference
from sparsify.exporters.signature import flat_inputs, sizes_of
from sparsify.exporters.single_samples import SELECTIONS, SingleSamples
from sparsify.exporters.size_ranges import allowed_batches
from sparsify.ir import Program, Stage
from sparsify.ir.binding import Inputs
from sparsify.ir.dimensions import BATCH
from sparsify.ir.effects import unexportable
from sparsify.tasks import Task
from sparsify.tasks.stored import as_task

OPSETS = range(18, 24)
CHOICES = {
    "storage": ("dense", "sparse"),
    "form": ("auto", "dense", "grouped", "auto:measure"),
    "selection": SELECTIONS,
    "precision": ("fp32", "int8"),
}


Convert = Callable[[Program, Sequence[Tensor], int], ir.Model]


@dataclass(frozen=True)
class Options:
    """The options of `sparsify.export`, which says what each means.

    Raises:
        ExportError: If one is out of range, or two exclude each other.
    """

    opset: int
    storage: str
    form: str
    selection: str
    precision: str
    calibration: Sequence[Tensor]
    held_out: Sequence[Tensor]
    labels: Tensor | None
    batch: int
    threads: int
    baked: Preprocessing | None
    """What the file computes itself, from bytes."""
    task: Task | None

    def __post_init__(self) -> None:
        if min(self.batch, self.threads) < 1:
            raise ExportError(
                f"batch and threads should be at least 1, found batch {self.batch} and threads {self.threads}."
            )
        if self.opset not in OPSETS:
            raise ExportError(f"opset should be between {OPSETS[0]} and {OPSETS[-1]}, found {self.opset}.")
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ExportError(f"{name} should be one of {', '.join(known)}, found {value!r}.")
        if self.precision == "int8" and self.storage != "dense":
            raise ExportError("int8 files have storage 'dense'; 'sparse' holds float32 values. Choose one of the two.")


@dataclass(frozen=True)
class Request:
    """A program that can be exported, and what its file is compared with.

    Attributes:
        program: as the user trained it.
        path: of the file.
        options: as they were given.
        metadata: of the file.
        reference: what the program computes from the inputs.
        batch: the size nearest to the one asked for that the file takes.
        convert: makes the graph of a program from it, inputs and the opset.
    """

    program: Program
    path: Path
    options: Options
    metadata: Mapping[str, str]
    reference: Reference
    batch: int
    convert: Convert

    @property
    def form(self) -> str:
        """The form to make: of a program that was never pruned no groups are looked for."""
        return "dense" if self.program.stage is Stage.TRACED else self.options.form

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes that the file is mostly called with, by dimension that varies: the batch asked for, and others as the inputs have them."""
        found = {
            name: size
            for name, size in sizes_of(self.program, self.reference.inputs).items()
            if name in self.program.sizes
        }
        return found | ({BATCH: self.batch} if BATCH in found else {})

    @property
    def written(self) -> Callable[[ir.Model], ir.Model]:
        """What a file becomes before it is written."""
        several = self.program.dynamic_batch and self.batch > 1
        return _fused if self.options.selection == "gather" or several else _by_batch


def _fused(model: ir.Model) -> ir.Model:
    return rewritten(model, fuse_products)


def meaning(program: Program, task: str | Task | None) -> Task | None:
    """What the outputs of a program mean: the task that was asked for, else its own.

    Raises:
        ExportError: If the program does not return what the task reads.
        TaskError: If there is no task of that name.
    """
    found, outputs = program.task if task is None else as_task(task), program.output_names("eval")
    if found is not None and found.output not in (None, *outputs):
        raise ExportError(
            f"task {found.name!r} reads the output {found.output!r}, and {program.name!r} returns {', '.join(outputs)}. Trace it for its "
            f"task: sparsify.trace(..., task={found.name!r})."
        )
    return found


def _by_batch(model: ir.Model) -> ir.Model:
    return rewritten(model, fuse_products, SingleSamples(model))


def requested(
    program: Program, path: Path, inputs: Inputs, options: Options, metadata: Mapping[str, str], convert: Convert
) -> Request:
    """Check that a program can be exported to a path, and run it on the inputs.

    Raises:
        ExportError: If the path is a folder, a file would lose what the program does, or the inputs do not fit it.

    Warns:
        TrainingWarning: If the program's training is not over.
    """
    if path.is_dir():
        raise ExportError(f"{path} is a folder. Give the file to write, such as {path / 'model.onnx'}.")
    tensors, fed = flat_inputs(program, inputs), None
    if lost := unexportable(program):
        raise ExportError(f"{program.name!r} {lost}")
    if program.unfinished:
        warnings.warn(
            f"{program.name!r} is exported before its training is over and has density {program.costs().density:.4g}: "
            f"{program.unfinished}.",
            TrainingWarning,
            stacklevel=3,
        )
    if options.baked is not None:
        fed = [options.baked.stored(x.cpu()) for x in tensors]
        tensors = [options.baked.inputs(x) for x in fed]
    reference = Reference(program, tensors, fed=fed, task=options.task)
    batch = allowed_batches(program).nearest(options.batch)
    return Request(program, path, options, metadata, reference, batch, convert)
