"""The fp32 file: made in the form asked for, or else dense; proved, and given its name if it is what was asked for."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

from sparsify.errors import ExportWarning
from sparsify.exporters.graphs import drop_weights
from sparsify.exporters.initializers import check_budgets
from sparsify.exporters.lowering import Made, fallen_back, first_line, made
from sparsify.exporters.options import Request
from sparsify.exporters.proof import Parity, prove
from sparsify.exporters.writing import UnwritableError, draft, write
from sparsify.ir import Program


@dataclass(frozen=True)
class Fp32File:
    """The file: how it was made, non-zeros and positions of masked weights, and its parity."""

    made: Made
    nonzeros: int
    positions: int
    parity: Parity


def fp32_file(request: Request, folded: Program) -> Fp32File:
    """Make and prove the file of a folded program; the graph is kept for int8 only.

    Raises:
        ExportError: If no form can be made, or the dense one does not agree with the program.

    Warns:
        ExportWarning: If a file in the form asked for was made and does not agree with the program; the dense one is written.
    """
    form, reason = request.form, ""
    try:
        file = made(request, folded, form)
    except Exception as error:  # whatever it is that a form cannot be made of stays dense, and says so
        if form == "dense":
            raise
        form, reason = "dense", first_line(error)
        file = made(request, folded, form)
    try:
        found = _proved(request, folded, file)
    except Exception as error:  # it was made, and is wrong: a defect, of which the dense file has to be free
        if form == "dense" or isinstance(error, UnwritableError):
            raise
        reason = f"it was made, and was wrong: {first_line(error)}"
        file = made(request, folded, "dense")
        found = _proved(request, folded, file)
        warnings.warn(
            f"the file of {request.program.name!r} in form {form!r} was wrong, and is not written: {first_line(error)} The file that is "
            f"written is in form 'dense', and was compared with the program as any other. Please report this model.",
            ExportWarning,
            stacklevel=3,
        )
    if reason:
        file.forms = fallen_back(folded, request.program.masks(), reason)
    return found


def _proved(request: Request, folded: Program, file: Made) -> Fp32File:
    nonzeros, positions = check_budgets(file.model, folded, file.lowered, request.program.masks())
    options, fp32 = request.options, request.options.precision == "fp32"
    with draft(request.path) as path:
        final = request.written(file.model)
        write(path, final, request.metadata, options.baked, sparse=options.storage == "sparse")
        if fp32:  # weights that were packed are in memory once more, and the runtime needs two copies
            drop_weights(final, file.model)
            file.lowered = folded
        parity = prove(path, request.reference)
        if fp32:
            os.replace(path, request.path)
    return Fp32File(file, nonzeros, positions, parity)
