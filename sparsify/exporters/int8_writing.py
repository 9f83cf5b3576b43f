"""Writes the int8 file of an export: the fastest of the fp32 and int8 forms that agree with the program."""

from __future__ import annotations

import os
import warnings

import onnx_ir as ir

from sparsify.errors import ExportWarning
from sparsify.exporters import int8
from sparsify.exporters.conversion import clean
from sparsify.exporters.fp32 import Fp32File
from sparsify.exporters.graphs import drop_weights
from sparsify.exporters.initializers import name_weights
from sparsify.exporters.int8_samples import Samples, samples_of
from sparsify.exporters.lowering import grouped
from sparsify.exporters.options import Request
from sparsify.exporters.proof import Parity, prove
from sparsify.exporters.size_ranges import allowed_batches
from sparsify.exporters.writing import draft, write
from sparsify.ir import Program
from sparsify.timing import values_of


def write_int8(request: Request, folded: Program, fp32: Fp32File) -> tuple[int8.Int8, Parity]:
    """Choose the fastest form by timed trials, and write it to the path of the request.

    Returns:
        The result of the int8 export, and the parity of the fp32 file: of the one written, or, if int8 is written, of ``fp32``.

    Warns:
        ExportWarning: If no int8 form agrees with the program, so that the file computes in fp32.
    """
    options, made, parity = request.options, fp32.made, fp32.parity
    samples = _samples(request, folded)

    def converted(program: Program) -> ir.Model:
        return request.convert(program, request.reference.inputs, options.opset)

    found = {name for name, text in made.forms.items() if text.startswith("grouped")}
    models = {"dense": converted(folded), "grouped": made.model} if found else {"dense": made.model}
    models = {kind: name_weights(file, made.arranged if kind == "grouped" else folded) for kind, file in models.items()}
    dense = tuple(name for name in made.forms if name not in found)

    def lower(kept: tuple[str, ...]) -> ir.Model:
        return name_weights(converted(grouped(made.arranged, "grouped", (*dense, *kept))[0]), made.arranged)

    final, integers = int8.int8_file(
        models, samples, lower=lower, written=request.written, batch=request.batch, threads=options.threads
    )
    before = values_of(final, samples.held_out) if options.baked is not None else {}
    with draft(request.path) as path:
        write(path, clean(final), {**request.metadata, "precision": integers.chosen.name}, options.baked)
        if not integers.chosen.integers:
            parity = prove(path, request.reference)
        elif options.baked is not None:
            int8.check_bytes(path, before, samples, options.baked)
        os.replace(path, request.path)
    drop_weights(final, *models.values())
    if integers.refused:
        warnings.warn(
            f"{os.fspath(request.path)} computes in fp32, not in int8: {integers.refused}. It is the form {integers.chosen.name!r}, "
            f"proved like any fp32 file. More or different calibration samples, or longer training, may help.",
            ExportWarning,
            stacklevel=3,
        )
    return integers, parity


def _samples(request: Request, folded: Program) -> Samples:
    options, program, reference = request.options, request.program, request.reference
    compared = options.held_out or reference.inputs
    if options.baked is not None and options.held_out:
        compared = [options.baked.inputs(options.baked.stored(x.cpu())) for x in options.held_out]
    whole = program.dynamic_batch and allowed_batches(program).nearest(1) not in reference.batches
    return samples_of(
        folded, options.calibration, compared, options.labels, batch=request.batch, whole=whole, task=options.task
    )
