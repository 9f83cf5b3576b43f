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
from sparsify.exporters.scanning import STEPS, scanned, stepwise, unrolled
from sparsify.exporters.signature import flat_inputs
from sparsify.exporters.size_ranges import range_metadata
from sparsify.ir import Program
from sparsify.ir.binding import Inputs
from sparsify.ir.compaction import stored_dense
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
    steps: str = "whole",
) -> ExportResult:
    """Write ``program`` as one ONNX file of standard operators; the program itself is not changed.

    Args:
        program: a program of any stage.
        path: the file to write; it appears complete and proved, or not at all.
        inputs: real held-out inputs, one tensor [N, ...] per program input, or whatever the program is called with (a tensor, a tuple, a
            mapping by name). A single sample is repeated if the batch is dynamic. The file is proved at several sizes of every dimension
            that varies.
        opset: 18 to 23.
        storage: ``dense``, or ``sparse`` to store weights as ONNX sparse initializers if that is smaller (saves disk space, not time).
        form: how to write layers whose groups of outputs read few inputs: ``grouped`` as a selection of inputs and small dense layers;
            ``dense`` as one dense layer; ``auto`` as grouped if a cost model predicts a gain; ``auto:measure`` as grouped if timing both in
            ONNX Runtime on this machine shows a gain.
        selection: how grouped linear layers select their inputs: ``by-batch`` uses faster operators for a single sample, inside an ``If``
            if the batch is open and ``batch`` is 1; ``gather`` uses `Gather` at every batch, for runtimes without ``If``, and is far slower
            for a single sample.
        precision: ``fp32``, or ``int8`` for the fastest of the fp32 file and its int8 forms, timed in ONNX Runtime on this machine.
        calibration: training inputs like ``inputs``, on which int8 ranges are observed.
        held_out: inputs that are in neither the training nor the test set; predictions of the int8 file are compared on them. Empty: use
            ``inputs``.
        labels: targets of ``held_out``, such as class numbers int64 [N]. The int8 file and the program are compared by how many they get
            right, and the calibration head is fitted again on them if layers compute in int8. None: the head is kept.
        batch: number of samples the file will mostly be called with if its batch is open; otherwise the nearest size it takes. Forms are
            timed at this size (int8, ``auto:measure``). Above 1, no single-sample branch is written: the file still takes one sample if
            the program does, but more slowly.
        threads: number of threads for timing forms.
        preprocessing: how stored values become ``inputs``; written into ``metadata_props``, so that the file can be fed without the code
            that trained the program.
        input_type: ``float``: the file takes what the program takes. ``uint8``: the file takes bytes and computes ``preprocessing`` itself;
            it is proved on the bytes nearest to ``inputs``.
        classes: names of the classes, in the order of the outputs; written into ``metadata_props``.
        task: what the outputs mean, a task of `sparsify.tasks` or its name; the proof compares decisions of this task. None: the
            program's own (`Program.task`). Its name is written into ``metadata_props``.
        metadata: further text for ``metadata_props``, under keys that the export does not write itself.
        steps: of a spiking network: ``whole`` computes all steps of a layer at once; ``unrolled`` computes the network step by step;
            ``scan`` does so in a ``Scan``, with the nodes of one step; ``single`` is one step per call, whose states go in and come out
            (`sparsify.ir.single_step`).

    Raises:
        ExportError: If an argument has the wrong type, an option is out of range, the program returns only NaN, the export fails,
            or the file does not agree with the program.

    Warns:
        ExportWarning: If the file in the requested form does not agree with the program; the dense form is written instead.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> program = sp.trace(torch.nn.Linear(4, 3), torch.rand(2, 4)).eval()
        >>> result = sp.export(program, "model.onnx", inputs=torch.rand(8, 4))
        >>> result.path.name
        'model.onnx'
    """
    program, convert, of_steps = stored_dense(program), _convert, dict[str, str]()
    if steps not in STEPS:
        raise ExportError(f"steps should be one of {', '.join(STEPS)}, found {steps!r}.")
    if steps != "whole" and precision == "int8":
        raise ExportError(f"int8 files compute all steps at once, found steps={steps!r}. Leave out one of the two.")
    if steps == "single" and input_type == "uint8":
        raise ExportError(
            "a file of a single step takes what the program takes, found input type uint8. Leave out one of the two."
        )
    whole = program
    if steps == "single":
        program, inputs, of_steps = stepwise(program, flat_inputs(program, inputs))
    elif steps != "whole":
        convert = scanned if steps == "scan" else unrolled
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
    told = described(whole, preprocessing=preprocessing, input_type=input_type, classes=classes, task=named)
    metadata = together(told, range_metadata(program), of_steps, metadata or {})
    request = requested(program, Path(path), inputs, options, metadata, convert)
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
