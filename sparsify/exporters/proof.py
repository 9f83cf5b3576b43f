"""The proof: a written file computes what the program does, in ONNX Runtime, on real inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from sparsify.errors import ExportError
from sparsify.ir import Program

RELATIVE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Parity:
    """How the file agrees with the program, over all outputs and batch sizes.

    Attributes:
        batches: the batch sizes compared.
        largest_error: |file - program| relative to the largest magnitude of the output.
        tolerance: what it had to stay below.
        decisions: samples whose argmax was compared; all agreed, unless the program's two best logits are a tie.
    """

    batches: tuple[int, ...]
    largest_error: float
    tolerance: float
    decisions: int


def prove(data: bytes, program: Program, inputs: Sequence[Tensor], *, fed: Sequence[Tensor] | None = None) -> Parity:
    """Run the file and the program on ``inputs``; ``fed`` is what the file takes in their place, where it prepares them itself."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in program.input_specs]
    total = len(inputs[0])
    batches = tuple(sorted({1, total})) if program.dynamic_batch else (total,)
    largest, decisions = 0.0, 0
    for batch in batches:
        given = [x[:batch].cpu() for x in inputs]
        with torch.no_grad():
            expected = [x for x in program.phases["eval"](*given) if isinstance(x, Tensor)]
        feeds = given if fed is None else [x[:batch] for x in fed]
        results = session.run(None, {n: x.numpy() for n, x in zip(names, feeds, strict=True)})
        for name, want, have in zip(program.output_names("eval"), expected, results, strict=True):
            reference, produced = want.double().numpy(), np.asarray(have, dtype=np.float64)
            if reference.shape != produced.shape:
                raise ExportError(
                    f"output {name!r} has shape {produced.shape} in the file, {reference.shape} in the program."
                )
            scale = max(float(np.abs(reference).max()), np.finfo(np.float32).tiny)
            error = float(np.abs(reference - produced).max()) / scale
            largest = max(largest, float(error))
            if not error <= RELATIVE_TOLERANCE:
                raise ExportError(
                    f"output {name!r} of the ONNX file differs from the program by {error:.2e} of its range at batch {batch} "
                    f"(tolerance {RELATIVE_TOLERANCE:.0e}). Nothing was written."
                )
            if name == "logits":
                best = np.sort(reference, axis=1)
                clear = best[:, -1] - best[:, -2] > 2 * RELATIVE_TOLERANCE * scale
                wrong = (reference.argmax(1) != produced.argmax(1)) & clear
                if wrong.any():
                    raise ExportError(f"{int(wrong.sum())} predictions differ at batch {batch}. Nothing was written.")
                decisions += len(reference)
    return Parity(batches, float(largest), RELATIVE_TOLERANCE, decisions)
