"""Export to ONNX: masks and batch norm folded, outputs named, the file proved in ONNX Runtime before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sparsify.arguments import checked
from sparsify.errors import ExportError
from sparsify.exporters.conversion import convert as _convert
from sparsify.exporters.fp32 import fp32_file
from sparsify.exporters.int8_writing import write_int8
from sparsify.exporters.lowering import folded
from sparsify.exporters.options import Options, meaning, requested
from sparsify.exporters.preprocessing import Preprocessing, described, together
from sparsify.exporters.result import ExportResult as ExportResult
from sparsify.exporters.size_ranges import range_metadata
from sparsify.ir import Program
from sparsify.ir.binding import Inputs
from sparsify.tasks import Task

_INPUTS = "inputs should be tensors [N, ...], one per program input, found {found}."


@checked(
    ExportError,
    program="export takes a program first, found {found}. Trace the model: sparsify.trace(model, (x,)).",
    path="export takes the path of the file second, found {found}.",
    inputs=_INPUTS,
)
def export(
    program: Program,
    path: str | os.PathLike[str],
    *,
    inputs: Inputs,
    opset: int = 20,
    storage: str = "dense",
    form: str = "auto",
    selection: str = "by-batch",
    precision: str = "fp32",
    calibration: Sequence[Tensor] = (),
    held_out: Sequence[Tensor] = (),
    labels: Tensor | None = None,
    batch: int = 1,
    threads: int = 1,
    preprocessing: Preprocessing | None = None,
    input_type: str = "float",
    classes: Sequence[str] = (),
    task: str | Task | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ExportResult:
    """Write ``program`` as one ONNX file of standard operators; the live program is not touched.

    Args:
        program: of any stage.
        path: of the file; it appears whole and proved, or not at all.
        inputs: real held-out inputs, one tensor [N, ...] per program input, or what the program is called with (a tensor, a tuple, a
            mapping by name). A single sample is repeated where the batch is dynamic. The file is proved at several sizes of every
            dimension that varies.
        opset: 18 to 23.
        storage: ``dense``, or ``sparse`` for ONNX sparse initializers where they are smaller (disk only, not speed).
        form: of layers whose groups of outputs read few inputs: ``grouped`` as small dense layers behind a selection of inputs, ``dense``
            as they are, ``auto``, grouped where a cost model predicts a gain, or ``auto:measure``, where timing both in ONNX Runtime on
            this machine shows one.
        selection: how grouped linear layers select their inputs: ``by-batch``, with operators of their own for one sample, behind an ``If``
            where the batch is open and ``batch`` is 1; or ``gather``, for runtimes without ``If``: `Gather` at every batch, far slower for
            one sample.
        precision: ``fp32``, or ``int8`` for the fastest of the fp32 file and its int8 forms, timed in ONNX Runtime on this machine.
        calibration: for int8, training inputs like ``inputs``, on which ranges are observed.
        held_out: for int8, inputs that neither training nor a test set holds: predictions are compared on them. Empty: ``inputs``.
        labels: targets of ``held_out``, such as class numbers int64 [N]; what the file gets right is compared with the program, and the
            calibration head is fitted again on them where layers compute in int8. None: it stays.
        batch: samples the file will mostly be called with, where its batch is open, or the size it takes that is nearest to that. Forms
            are timed at it (int8, ``auto:measure``), and above 1 nothing is written for single samples: the file takes one as well
            where the program does, but is slower at it.
        threads: at which forms are timed.
        preprocessing: how stored values become ``inputs``; written into ``metadata_props``, so that the file can be fed without the code
            that trained the program.
        input_type: ``float``: the file takes what the program takes. ``uint8``: the file takes bytes and computes ``preprocessing`` itself;
            it is proved on the bytes nearest to ``inputs``.
        classes: names of the classes, in the order of the outputs; written into ``metadata_props``.
        task: what the outputs mean, a task of `sparsify.tasks` or its name: whose decisions are compared. None: that of the program
            (`Program.task`). Its name is written into ``metadata_props``.
        metadata: further text put into ``metadata_props``, under keys that the export does not write itself.

    Raises:
        ExportError: If an argument is of another kind, an option is out of range, the program returns only NaN, export fails,
            or the file does not agree with the program.

    Warns:
        ExportWarning: If a file in the form asked for was made and does not agree with the program; the dense one is written.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> program = sp.trace(torch.nn.Linear(4, 3), torch.rand(2, 4)).eval()
        >>> result = sp.export(program, "model.onnx", inputs=torch.rand(8, 4))
        >>> result.path.name
        'model.onnx'
    """
    options = Options(
        opset=opset,
        storage=storage,
        form=form,
        selection=selection,
        precision=precision,
        calibration=calibration,
        held_out=held_out,
        labels=labels,
        batch=batch,
        threads=threads,
        baked=preprocessing if input_type == "uint8" else None,
        task=meaning(program, task),
    )
    named = None if options.task is None else options.task.name
    told = described(program, preprocessing=preprocessing, input_type=input_type, classes=classes, task=named)
    metadata = together(told, range_metadata(program), metadata or {})
    request = requested(program, Path(path), inputs, options, metadata, _convert)
    copy = folded(program)
    file, integers = fp32_file(request, copy), None
    parity = file.parity
    if precision == "int8":
        integers, parity = write_int8(request, copy, file)
    return ExportResult(
        request.path,
        request.path.stat().st_size,
        file.nonzeros,
        file.positions,
        parity,
        file.made.forms,
        integers,
        dict(program.ranges["eval"]),
        sum(parameter.numel() for parameter in program.parameters()),
        metadata.get("calibration"),
    )
