"""Export to ONNX: masks and batch norm folded, outputs named, the file proved in ONNX Runtime before it gets its name."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import helper
from torch import Tensor, nn

from sparsify.arguments import checked
from sparsify.errors import ExportError, ExportWarning, SparsifyError, TrainingWarning
from sparsify.exporters import int8
from sparsify.exporters.conversion import clean
from sparsify.exporters.conversion import convert as _convert
from sparsify.exporters.fused_products import fused_products
from sparsify.exporters.initializers import check_budgets, name_weights, store_sparse
from sparsify.exporters.int8_samples import samples_of
from sparsify.exporters.measure import Trial, measure_layers
from sparsify.exporters.preprocessing import Preprocessing, described
from sparsify.exporters.proof import Parity, Reference, prove
from sparsify.exporters.result import ExportResult as ExportResult
from sparsify.exporters.signature import flat_inputs
from sparsify.exporters.single_samples import SELECTIONS, single_samples
from sparsify.exporters.size_ranges import allowed_batches, range_metadata
from sparsify.exporters.skeleton import skeleton
from sparsify.exporters.trials import values_of
from sparsify.exporters.wire import pieces
from sparsify.files import unfinished, write_to_disk
from sparsify.ir import Program, Stage
from sparsify.ir.binding import Inputs
from sparsify.ir.effects import unexportable
from sparsify.passes import (
    AbsorbBiases,
    EliminateUnreadOutputs,
    FoldLayerNorm,
    LowerGroupedConv,
    LowerGroupedLinear,
    OrderOutputs,
    PassLog,
    Pipeline,
)
from sparsify.version import __version__

OPSETS = range(18, 24)
STORAGES = ("dense", "sparse")
FORMS = ("auto", "dense", "grouped", "auto:measure")
PRECISIONS = ("fp32", "int8")
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
    task: str | None = None,
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
        labels: int64 [N] of ``held_out``; the calibration head is fitted again on them where layers compute in int8. None: it stays.
        batch: samples the file will mostly be called with, where its batch is open, or the size it takes that is nearest to that. Forms
            are timed at it (int8, ``auto:measure``), and above 1 nothing is written for single samples: the file takes one as well
            where the program does, but is slower at it.
        threads: at which forms are timed.
        preprocessing: how stored values become ``inputs``; written into ``metadata_props``, so that the file can be fed without the code
            that trained the program.
        input_type: ``float``: the file takes what the program takes. ``uint8``: the file takes bytes and computes ``preprocessing`` itself;
            it is proved on the bytes nearest to ``inputs``.
        classes: names of the classes, in the order of the outputs; written into ``metadata_props``.
        task: name of the task, such as ``classification``; written into ``metadata_props``.
        metadata: further text put into ``metadata_props``.

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
    if min(batch, threads) < 1:
        raise ExportError(f"batch and threads should be at least 1, found batch {batch} and threads {threads}.")
    if Path(path).is_dir():
        raise ExportError(f"{path} is a folder. Give the file to write, such as {Path(path) / 'model.onnx'}.")
    inputs = flat_inputs(program, inputs)
    if lost := unexportable(program):
        raise ExportError(f"{program.name!r} {lost}")
    if program.unfinished:
        warnings.warn(
            f"{program.name!r} is exported before its training is over and has density {program.costs().density:.4g}: "
            f"{program.unfinished}.",
            TrainingWarning,
            stacklevel=2,
        )
    if opset not in OPSETS:
        raise ExportError(f"opset should be between {OPSETS[0]} and {OPSETS[-1]}, found {opset}.")
    if storage not in STORAGES:
        raise ExportError(f"storage should be one of {', '.join(STORAGES)}, found {storage!r}.")
    if form not in FORMS:
        raise ExportError(f"form should be one of {', '.join(FORMS)}, found {form!r}.")
    if selection not in SELECTIONS:
        raise ExportError(f"selection should be one of {', '.join(SELECTIONS)}, found {selection!r}.")
    if precision not in PRECISIONS:
        raise ExportError(f"precision should be one of {', '.join(PRECISIONS)}, found {precision!r}.")
    if precision == "int8" and storage != "dense":
        raise ExportError("int8 files have storage 'dense'; 'sparse' holds float32 values. Choose one of the two.")
    told = described(program, preprocessing=preprocessing, input_type=input_type, classes=classes, task=task)
    metadata = {**told, **range_metadata(program), **(metadata or {})}
    allowed = allowed_batches(program)
    batch = allowed.nearest(batch)
    baked, fed = None, None
    if input_type == "uint8" and preprocessing is not None:
        baked, fed = preprocessing, [preprocessing.stored(x.cpu()) for x in inputs]
        inputs = [preprocessing.inputs(x) for x in fed]
    reference = Reference(program, inputs, fed=fed)
    inputs = reference.inputs
    several = program.dynamic_batch and batch > 1
    written = fused_products if selection == "gather" or several else _by_batch
    masks = program.masks()
    measured = functools.partial(measure_layers, written=written, batch=batch, threads=threads)
    folded = _folded(program)
    if program.stage is Stage.TRACED:
        form = "dense"  # nothing was pruned, so no groups are looked for

    def made(form: str) -> _Made:
        arranged = _arranged(folded, form)
        lowered, forms = _lowered(arranged, form, measured)
        return _Made(arranged, lowered, forms, _convert(lowered, inputs, opset))

    def proved(file: _Made) -> tuple[tuple[int, int], Parity]:
        """The fp32 file has got its name, or is kept for one in int8."""
        counts = check_budgets(file.model, folded, file.lowered, masks)
        final = written(file.model)
        if final is file.model and precision == "int8":  # what is written into the one file is not for the others
            final = deepcopy(final)
        if storage == "sparse":
            store_sparse(final)
        with _draft(Path(path)) as draft:
            write_to_disk(draft, pieces(_finished(final, metadata, baked)))
            del final
            if precision == "fp32":  # a copy of the weights each, and the runtime needs two
                file.lowered, file.model = folded, onnx.ModelProto()
            parity = prove(draft, reference)
            if precision == "fp32":
                os.replace(draft, path)
        return counts, parity

    cannot, wrong = "", ""
    try:
        file = made(form)
    except Exception as error:  # whatever it is that a form cannot be made of stays dense, and says so
        if form == "dense":
            raise
        cannot = _first_line(error)
        file = made("dense")
    try:
        (nonzeros, positions), parity = proved(file)
    except Exception as error:  # it was made, and is wrong: a defect, of which the dense file has to be free
        if form == "dense" or cannot or isinstance(error, _UnwritableError):
            raise
        wrong = _first_line(error)
        file = made("dense")
        (nonzeros, positions), parity = proved(file)
        warnings.warn(
            f"the file of {program.name!r} in form {form!r} was wrong, and is not written: {wrong} The file that is written is in form "
            f"'dense', and was compared with the program as any other. Please report this model.",
            ExportWarning,
            stacklevel=2,
        )
    arranged, forms, model = file.arranged, file.forms, file.model
    if cannot or wrong:
        forms = _fallen_back(folded, masks, cannot or f"it was made, and was wrong: {wrong}")
    integers = None
    if precision == "int8":
        compared = held_out or inputs
        if baked is not None and held_out:
            compared = [baked.inputs(baked.stored(x.cpu())) for x in held_out]
        whole = program.dynamic_batch and allowed.nearest(1) not in reference.batches
        samples = samples_of(folded, calibration, compared, labels, batch=batch, whole=whole)
        converted = functools.partial(_convert, inputs=inputs, opset=opset)
        grouped = any(text.startswith("grouped") for text in forms.values())
        models = {"dense": converted(folded), "grouped": model} if grouped else {"dense": model}
        models = {kind: name_weights(file, arranged if kind == "grouped" else folded) for kind, file in models.items()}
        dense = tuple(name for name, text in forms.items() if not text.startswith("grouped"))

        def lower(kept: tuple[str, ...]) -> onnx.ModelProto:
            return name_weights(converted(_grouped(arranged, "grouped", (*dense, *kept))[0]), arranged)

        final, integers = int8.int8_file(models, samples, lower=lower, written=written, batch=batch, threads=threads)
        said = values_of(final, samples.held_out) if baked is not None else {}
        told = {**metadata, "precision": integers.chosen.name}
        with _draft(Path(path)) as draft:
            write_to_disk(draft, pieces(_finished(clean(final), told, baked)))
            if not integers.chosen.integers:
                parity = prove(draft, reference)
            elif baked is not None:
                int8.check_bytes(draft, said, samples, baked)
            os.replace(draft, path)
        if integers.refused:
            warnings.warn(
                f"{os.fspath(path)} computes in fp32, not in int8: {integers.refused}. It is the form {integers.chosen.name!r}, proved as "
                f"any fp32 file. More or other calibration samples, or longer training, may help.",
                ExportWarning,
                stacklevel=2,
            )
    params = sum(parameter.numel() for parameter in program.parameters())
    size = Path(path).stat().st_size
    return ExportResult(
        Path(path), size, nonzeros, positions, parity, forms, integers, dict(program.ranges["eval"]), params
    )


@dataclass
class _Made:
    """A form of the program: with its outputs arranged, as it is converted, what became of each weight, and the graph."""

    arranged: Program
    lowered: Program
    forms: dict[str, str]
    model: onnx.ModelProto


class _UnwritableError(ExportError):
    """No form of the file could be written."""


@contextlib.contextmanager
def _draft(path: Path) -> Generator[Path]:
    """A file beside ``path`` to write, prove and rename."""
    try:
        with unfinished(path) as file:
            yield file
    except OSError as error:
        raise _UnwritableError(
            f"cannot write {path}: {error.strerror}. Choose a writable folder with enough space."
        ) from error


def _first_line(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return text if text and isinstance(error, SparsifyError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _fallen_back(folded: Program, masks: Collection[str], reason: str) -> dict[str, str]:
    """What became of each weight where only the dense form could be written, and why."""
    names = masks or [name for name, value in folded.named_parameters() if value.ndim > 1]
    return dict.fromkeys(names, f"dense: the file in another form was not usable ({reason})")


def _by_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    return single_samples(fused_products(model))


def _finished(model: onnx.ModelProto, metadata: Mapping[str, str], baked: Preprocessing | None) -> onnx.ModelProto:
    if baked is not None:
        baked.bake(model)
    del model.metadata_props[:]
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)
    model.producer_name, model.producer_version = "sparsify", __version__
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    onnx.checker.check_model(skeleton(model))  # the runtime that proves the file reads its weights
    return model


def _rewritten(program: Program, pipeline: Pipeline) -> tuple[Program, tuple[PassLog, ...]]:
    """A copy in the memory of the program's weights, but for those that passes change: these get memory of their own."""
    shared: dict[int, Any] = {
        id(value): nn.Parameter(value.detach(), value.requires_grad) for value in program.parameters()
    }
    copy = deepcopy(program, shared)
    return copy, pipeline.apply(copy)


def _folded(program: Program) -> Program:
    steps = ["fold-batch-norm", "eliminate-dead-code"]
    if program.stage is not Stage.DEPLOYED:
        steps.insert(0, "deploy")
    if program.stage is Stage.MASKED:
        steps.insert(0, "fold-masks")
    return _rewritten(program, Pipeline.parse(" | ".join(steps)))[0].cpu().eval()


def _arranged(folded: Program, form: str) -> Program:
    """The program with outputs of a group side by side, without those that nothing reads, and without what layer norms can leave to it."""
    if form == "dense":
        return folded
    return _rewritten(folded, Pipeline((OrderOutputs(), EliminateUnreadOutputs(), FoldLayerNorm())))[0]


def _lowered(
    folded: Program, form: str, measured: Callable[[Program], Mapping[str, Trial]]
) -> tuple[Program, dict[str, str]]:
    """The program with grouped layers in their own form, and what became of each weight."""
    if form == "dense":
        return folded, {}
    trials = measured(folded) if form == "auto:measure" else {}
    slower = tuple(name for name, trial in trials.items() if trial.grouped >= trial.dense)
    lowered, forms = _grouped(folded, "grouped" if form == "auto:measure" else form, slower)
    return lowered, forms | {name: f"{forms[name]}: {trial}" for name, trial in trials.items()}


def _grouped(folded: Program, rule: str, dense: Collection[str]) -> tuple[Program, dict[str, str]]:
    """The program with grouped layers in their own form but for the weights ``dense``, and what became of each weight."""
    ranks = {name: folded.get_parameter(name).ndim for name in dense}
    pipeline = Pipeline((
        AbsorbBiases(),
        LowerGroupedConv(form=rule, keep_dense=tuple(name for name, rank in ranks.items() if rank > 2)),
        LowerGroupedLinear(form=rule, keep_dense=tuple(name for name, rank in ranks.items() if rank == 2)),
    ))  # fmt: skip
    lowered, logs = _rewritten(folded, pipeline)
    forms = {name: "grouped" for log in logs[1:] for name in log.changed}
    forms |= {name: "dense" if name in dense else reason for log in logs[1:] for name, reason in log.skipped}
    return lowered.eval(), forms
