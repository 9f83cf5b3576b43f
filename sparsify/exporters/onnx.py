"""Export to ONNX: masks and batch norm folded, outputs named, the file proved in ONNX Runtime before it gets its name."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from sparsify.errors import ExportError
from sparsify.exporters.measure import measure_layers
from sparsify.ir import Program, Stage
from sparsify.ir.serialization import write_atomically
from sparsify.passes import LowerGroupedConv, LowerGroupedLinear, OrderOutputs, Pipeline

OPSETS = range(18, 24)
STORAGES = ("dense", "sparse")
FORMS = ("auto", "dense", "grouped", "auto:measure")
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


@dataclass(frozen=True)
class ExportResult:
    """The written file: size in bytes, non-zeros and positions of the weights that were masked, and its parity.

    Attributes:
        forms: by weight, ``grouped``, or why it was left dense.
    """

    path: Path
    bytes: int
    nonzeros: int
    positions: int
    parity: Parity
    forms: Mapping[str, str] = dataclasses.field(default_factory=dict)


def export(
    program: Program,
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[Tensor],
    opset: int = 20,
    storage: str = "dense",
    form: str = "auto",
    metadata: Mapping[str, str] | None = None,
) -> ExportResult:
    """Write ``program`` as one ONNX file of standard operators; the live program is not touched.

    Args:
        program: of any stage.
        path: of the file; it appears whole and proved, or not at all.
        inputs: real held-out inputs, one tensor [N, ...] per program input, N >= 2 where the batch is dynamic.
        opset: 18 to 23.
        storage: ``dense``, or ``sparse`` for ONNX sparse initializers where they are smaller (disk only, not speed).
        form: of layers whose groups of outputs read few inputs: ``grouped`` as small dense layers behind a selection of inputs, ``dense``
            as they are, ``auto``, grouped where a cost model predicts a gain, or ``auto:measure``, where timing both in ONNX Runtime on
            this machine shows one.
        metadata: text put into ``metadata_props``.

    Raises:
        ExportError: If an option is out of range, export fails, or the file does not agree with the program.
    """
    if opset not in OPSETS:
        raise ExportError(f"opset should be between {OPSETS[0]} and {OPSETS[-1]}, found {opset}.")
    if storage not in STORAGES:
        raise ExportError(f"storage should be one of {', '.join(STORAGES)}, found {storage!r}.")
    if form not in FORMS:
        raise ExportError(f"form should be one of {', '.join(FORMS)}, found {form!r}.")
    masks = {name: mask.clone() for name, mask in program.masks().items()}
    folded = _folded(program)
    lowered, forms = _lowered(folded, form)
    model = _convert(lowered, inputs, opset)
    nonzeros, positions = _check_budgets(model, lowered, masks)
    if storage == "sparse":
        _store_sparse(model)
    for key, value in sorted((metadata or {}).items()):
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    data = model.SerializeToString(deterministic=True)
    parity = _prove(data, folded, inputs)
    try:
        write_atomically(Path(path), data)
    except OSError as error:
        raise ExportError(
            f"cannot write {path}: {error.strerror}. Choose a writable folder with enough space."
        ) from error
    return ExportResult(Path(path), len(data), nonzeros, positions, parity, forms)


def _folded(program: Program) -> Program:
    steps = ["fold-batch-norm", "eliminate-dead-code"]
    if program.stage is Stage.MASKED:
        steps.insert(1, "fold-masks")
    return Pipeline.parse(" | ".join(steps))(program).cpu().eval()


def _lowered(folded: Program, form: str) -> tuple[Program, dict[str, str]]:
    """The program with grouped layers in their own form, and what became of each weight."""
    if form == "dense" or folded.stage is not Stage.FOLDED:
        return folded, {}
    folded = Pipeline((OrderOutputs(),))(folded)
    trials = measure_layers(folded) if form == "auto:measure" else {}
    slower = tuple(name for name, trial in trials.items() if trial.grouped >= trial.dense)
    rule = "grouped" if form == "auto:measure" else form
    lowered, logs = Pipeline((
        LowerGroupedConv(form=rule, keep_dense=tuple(name for name in slower if folded.get_parameter(name).ndim > 2)),
        LowerGroupedLinear(form=rule, keep_dense=tuple(name for name in slower if folded.get_parameter(name).ndim == 2)),
    )).run(folded)  # fmt: skip
    forms = {name: "grouped" for log in logs for name in log.changed}
    forms |= {name: "dense" if name in slower else reason for log in logs for name, reason in log.skipped}
    return lowered.eval(), forms | {name: f"{forms[name]}: {trial}" for name, trial in trials.items()}


class _NamedOutputs(nn.Module):
    """The eval phase with flat inputs and all its outputs, heads included."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.phase = program.phases["eval"]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.phase(*inputs))


def _convert(program: Program, inputs: Sequence[Tensor], opset: int) -> onnx.ModelProto:
    dynamic = [{0: torch.export.Dim("batch", min=1)} for _ in inputs] if program.dynamic_batch else None
    with _quiet():
        try:
            exported = torch.onnx.export(
                _NamedOutputs(program).eval(),
                tuple(x[:2] if program.dynamic_batch else x for x in inputs),
                dynamo=True,
                opset_version=opset,
                input_names=[spec.name for spec in program.input_specs],
                output_names=list(program.output_names("eval")),
                dynamic_shapes=(tuple(dynamic),) if dynamic else None,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(
                f"torch.onnx.export cannot convert {program.name!r} at opset {opset}: {str(error).splitlines()[0]}. "
                f"Try another opset, or load transformers models with set_attn_implementation('eager')."
            ) from error
    assert exported is not None
    model = exported.model_proto
    return _clean(model)


def _clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what names the machine that wrote the file: stack traces and paths in node metadata."""
    for group in (
        model.graph.node,
        model.graph.value_info,
        model.graph.input,
        model.graph.output,
        model.graph.initializer,
    ):
        for item in group:
            del item.metadata_props[:]
            item.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    return model


def _check_budgets(model: onnx.ModelProto, program: Program, masks: Mapping[str, Tensor]) -> tuple[int, int]:
    """Zeros of every masked weight, by size and count; the exporter may rename and transpose but not merge."""
    found = sorted(
        (int(np.prod(i.dims)), int(np.count_nonzero(numpy_helper.to_array(i)))) for i in model.graph.initializer
    )
    nonzeros = positions = 0
    for name, mask in masks.items():
        weight = program.get_parameter(_kept_name(program, name)).detach()
        key = (weight.numel(), int(weight.count_nonzero()))
        if key not in found:
            raise ExportError(
                f"no initializer of the ONNX file has the {key[1]} non-zeros of {key[0]} positions of {name!r}; "
                f"the exporter changed the weight. Please report this model."
            )
        found.remove(key)
        nonzeros, positions = nonzeros + key[1], positions + mask.numel()
    return nonzeros, positions


def _kept_name(program: Program, name: str) -> str:
    names = dict(program.named_parameters(remove_duplicate=False))
    if name in names:
        return name
    raise ExportError(f"the weight {name!r} vanished while folding; it is not read by the eval phase.")


def _store_sparse(model: onnx.ModelProto) -> None:
    """Move initializers into sparse ones where that is smaller (values and one int64 index a non-zero)."""
    kept: list[onnx.TensorProto] = []
    for initializer in model.graph.initializer:
        array = numpy_helper.to_array(initializer)
        index = np.flatnonzero(array)
        if array.dtype != np.float32 or len(index) * 12 >= array.nbytes:
            kept.append(initializer)
            continue
        values = helper.make_tensor(
            initializer.name, TensorProto.FLOAT, [len(index)], array.reshape(-1)[index].tobytes(), raw=True
        )
        places = helper.make_tensor(
            f"{initializer.name}_index", TensorProto.INT64, [len(index)], index.astype(np.int64).tobytes(), raw=True
        )
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, list(array.shape)))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _prove(data: bytes, program: Program, inputs: Sequence[Tensor]) -> Parity:
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
        results = session.run(None, {n: x.numpy() for n, x in zip(names, given, strict=True)})
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


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep the exporter's progress and warnings from the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
