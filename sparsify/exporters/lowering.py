"""A program in the form that its file is made of: folded, its outputs arranged, its grouped layers lowered; and the graph of the file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from torch import nn

from sparsify.errors import SparsifyError
from sparsify.exporters.masked_attention import answer_with_zero
from sparsify.exporters.measure import measure_layers
from sparsify.exporters.options import Request
from sparsify.ir import Program, Stage
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


@dataclass
class Made:
    """A form of the program: with its outputs arranged, as it is converted, what became of each weight, and the graph."""

    arranged: Program
    lowered: Program
    forms: dict[str, str]
    model: ir.Model


def folded(program: Program) -> Program:
    """A deployed copy in eval mode on the CPU, its masks and batch norms folded."""
    steps = ["fold-batch-norm", "eliminate-dead-code"]
    if program.stage is not Stage.DEPLOYED:
        steps.insert(0, "deploy")
    if program.stage is Stage.MASKED:
        steps.insert(0, "fold-masks")
    copy = _rewritten(program, Pipeline.parse(" | ".join(steps)))[0].cpu().eval()
    answer_with_zero(copy)
    return copy


def made(request: Request, program: Program, form: str) -> Made:
    """Convert a folded program in one of the forms of `sparsify.export`."""
    inputs, opset = request.reference.inputs, request.options.opset
    if form == "dense":
        return Made(program, program, {}, request.convert(program, inputs, opset))
    sizes = tuple(f"{name}={size}" for name, size in request.sizes.items())
    arranged, _ = _rewritten(program, Pipeline((OrderOutputs(sizes=sizes), EliminateUnreadOutputs(), FoldLayerNorm())))
    if form == "auto:measure":
        trials = measure_layers(arranged, written=request.written, sizes=request.sizes, threads=request.options.threads)
        slower = tuple(name for name, trial in trials.items() if trial.grouped >= trial.dense)
        lowered, forms = grouped(arranged, "grouped", slower)
        forms |= {name: f"{forms[name]}: {trial}" for name, trial in trials.items()}
    else:
        lowered, forms = grouped(arranged, form, (), sizes, picks=request.options.selection != "gather")
    return Made(arranged, lowered, forms, request.convert(lowered, inputs, opset))


def grouped(
    program: Program, rule: str, dense: Collection[str], sizes: tuple[str, ...] = (), *, picks: bool = True
) -> tuple[Program, dict[str, str]]:
    """The program with grouped layers in their own form but for the weights ``dense``, and what became of each weight.

    Args:
        program: arranged.
        rule: a form of `LowerGroupedLinear`.
        dense: weights that stay as they are.
        sizes, picks: for its cost model.
    """
    ranks = {name: program.get_parameter(name).ndim for name in dense}
    pipeline = Pipeline((
        AbsorbBiases(),
        LowerGroupedConv(form=rule, keep_dense=tuple(name for name, rank in ranks.items() if rank > 2)),
        LowerGroupedLinear(
            form=rule, keep_dense=tuple(name for name, rank in ranks.items() if rank == 2), sizes=sizes, picks=picks
        ),
    ))  # fmt: skip
    lowered, logs = _rewritten(program, pipeline)
    forms = {name: "grouped" for log in logs[1:] for name in log.changed}
    forms |= {name: "dense" if name in dense else reason for log in logs[1:] for name, reason in log.skipped}
    return lowered.eval(), forms


def fallen_back(program: Program, masks: Collection[str], reason: str) -> dict[str, str]:
    """What became of each weight where only the dense form could be written, and why."""
    names = masks or [name for name, value in program.named_parameters() if value.ndim > 1]
    return dict.fromkeys(names, f"dense: the file in another form was not usable ({reason})")


def first_line(error: Exception) -> str:
    """What went wrong, in a line."""
    text = (str(error).splitlines() or [""])[0]
    return text if text and isinstance(error, SparsifyError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _rewritten(program: Program, pipeline: Pipeline) -> tuple[Program, tuple[PassLog, ...]]:
    """A copy in the memory of the program's weights, but for those that passes change: these get memory of their own."""
    shared: dict[int, Any] = {
        id(value): nn.Parameter(value.detach(), value.requires_grad) for value in program.parameters()
    }
    copy = program.copied(shared)
    return copy, pipeline.apply(copy)
