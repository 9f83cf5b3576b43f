"""Prepares samples for int8 export: calibration and held-out batches, and the program's outputs for the held-out ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import ExportError
from sparsify.exporters.signature import batches_of, refuse_alike, sample_count, tensor_outputs
from sparsify.exporters.size_ranges import allowed_batches
from sparsify.ir import Program
from sparsify.ir.heads import USUAL_LEVEL, head_level, head_names
from sparsify.ir.size_ranges import SizeRange
from sparsify.tasks import Task
from sparsify.timing import BATCH, Array, Batches, Feeds

BRANCH_SAMPLES = 32
"""Largest batch on which an int8 model is run both with and without special operators for one sample, to compare the outputs."""


@dataclass(frozen=True)
class Wanted:
    """An output of the program for the held-out samples, one array per batch, and its sample dimension; None: it has no such dimension."""

    values: Sequence[Array]
    samples: int | None = 0

    def table(self, values: Sequence[Array]) -> Array:
        """Return the batches of this output as one array: [N, ...], or [B, ...] for B batches if there is no sample dimension.

        Batches whose other dimensions differ in size from the first batch, as in [N, N], are left out.
        """
        if self.samples is None:
            return np.stack([value for value in values if value.shape == values[0].shape])
        moved = [np.moveaxis(value, self.samples, 0) for value in values]
        return np.concatenate([value for value in moved if value.shape[1:] == moved[0].shape[1:]])


@dataclass(frozen=True)
class Samples:
    """Samples for int8 export.

    Attributes:
        calibration: batches of training inputs, on which ranges are observed.
        timed: inputs of the call that is timed.
        held_out: batches of inputs, on which the model is compared with the program.
        wanted: each output of the program for ``held_out``, by name.
        labels: targets of ``held_out``, [N, ...], on which the calibration head is fitted, or None.
        tried: inputs on which the written model is compared with the one that was checked; empty: those of ``held_out``.
        task: what the outputs mean; None: inferred from their shapes and the calibration head.
        heads: the program's heads, as they were recorded; a head of an earlier version is identified by its buffers.
        level: the level that the head was fitted for.
    """

    calibration: Batches
    timed: Feeds
    held_out: Batches
    wanted: Mapping[str, Wanted]
    labels: Array | None = None
    tried: Batches = field(default=())
    task: Task | None = None
    heads: tuple[str, ...] = ()
    level: float = USUAL_LEVEL

    @property
    def main(self) -> str:
        """The name of the output that the task reads; without a task ``logits``, else ``prediction``, else the first output."""
        read = (self.task and self.task.output, "logits", "prediction")
        return next((name for name in read if name in self.wanted), next(iter(self.wanted)))  # type: ignore[return-value]


def samples_of(
    program: Program,
    calibration: Sequence[Tensor],
    held_out: Sequence[Tensor],
    labels: Tensor | None,
    *,
    batch: int,
    whole: bool = False,
    task: Task | None = None,
) -> Samples:
    """Split samples into batches of sizes that the program accepts, and compute its outputs for the held-out ones.

    Args:
        program: in eval mode, on the CPU.
        calibration, held_out: one tensor per input. An input without a batch dimension is passed to each batch unchanged.
        labels: targets of ``held_out``, [N, ...].
        batch: number of samples in the call that is timed, if the batch size of the program is not fixed.
        whole: do not split the samples, because the program fails on parts of them, for example if one input indexes into the others.
        task: what the outputs mean, if known.

    Raises:
        ExportError: If there are too few samples, or they do not fit the program.
        DataError: If the labels do not fit the task.
    """
    for option, given in (("calibration", calibration), ("held_out", held_out)):
        if len(given) != len(program.input_specs):
            raise ExportError(
                f"int8 needs one tensor per input: {option} should hold {len(program.input_specs)} tensor(s), found {len(given)}. Give "
                f"training inputs as calibration, and other samples as held_out."
            )
        _check_shapes(program, given, option)
    calibration, held_out = ([x.detach().cpu() for x in given] for given in (calibration, held_out))
    observed, count = sample_count(program, calibration), sample_count(program, held_out)
    if labels is not None and len(labels) != count:
        raise ExportError(f"found {len(labels)} labels for {count} held-out inputs. Give one label per input.")
    refuse_alike(program, held_out)
    allowed, fixed = allowed_batches(program), None if program.dynamic_batch else sample_count(program, None)
    if fixed is None and not (allowed.at_most(count) and allowed.at_most(observed)):
        raise ExportError(
            f"{program.name!r} takes batches of {allowed}; found {count} held-out and {observed} calibration samples, which is not "
            f"enough for one batch of each. Give more samples."
        )
    timed = fixed or (observed if whole else batch)
    if observed < (fixed or 2) or not 1 <= timed <= observed:
        raise ExportError(
            f"int8 needs at least {fixed or 2} calibration samples, and a batch size for timing that is at most their number; found "
            f"{observed} samples and batch size {timed}. Give more calibration samples, or a smaller batch."
        )
    if count < (fixed or 1):
        raise ExportError(
            f"int8 compares the file with the program on batches of {fixed} samples; found {count} held-out. Give at least {fixed}."
        )

    def split(inputs: Sequence[Tensor], of: int) -> list[list[Tensor]]:
        sizes = [fixed] * (of // fixed) if fixed else _sizes(allowed, of, whole=whole)
        return list(batches_of(program, inputs, sizes))

    def named(inputs: Sequence[Tensor]) -> dict[str, Array]:
        return {spec.name: x.numpy() for spec, x in zip(program.input_specs, inputs, strict=True)}

    pieces = split(held_out, count)
    first = [] if fixed or whole else [allowed.nearest(1), allowed.at_most(min(BRANCH_SAMPLES, count)) or 1]
    wanted = _wanted(program, pieces, fixed)
    if labels is not None and task is not None and task.output in wanted:
        task.check(labels, ("N", *wanted[task.output].values[0].shape[1:]))
    tried = [named(next(batches_of(program, held_out, [size]))) for size in first]
    return Samples(
        calibration=[named(piece) for piece in split(calibration, observed)],
        timed=named(next(batches_of(program, calibration, [timed]))),
        held_out=[named(piece) for piece in pieces],
        wanted=wanted,
        labels=None if labels is None else labels.cpu().numpy(),
        tried=tried,
        task=task,
        heads=head_names(program),
        level=head_level(program),
    )


def _check_shapes(program: Program, given: Sequence[Tensor], option: str) -> None:
    for spec, value in zip(program.input_specs, given, strict=True):
        own = spec.shape if program.dynamic_batch or not spec.shape else ("N", *spec.shape[1:])
        if value.ndim != len(own) or any(
            isinstance(s, int) and s != have for s, have in zip(own, value.shape, strict=True)
        ):
            raise ExportError(
                f"{option} for input {spec.name!r} should have shape {list(own)}, found {list(value.shape)}. Give inputs like those that "
                f"{program.name!r} was traced with."
            )


def _sizes(allowed: SizeRange, count: int, *, whole: bool) -> list[int]:
    return [allowed.at_most(count) or count] if whole else allowed.pieces(count, max(BATCH, allowed.low))


def _wanted(program: Program, pieces: Sequence[Sequence[Tensor]], fixed: int | None) -> dict[str, Wanted]:
    outputs = tensor_outputs(program)
    found: dict[str, list[Array]] = {output.name: [] for output in outputs}
    with torch.no_grad():
        for piece in pieces:
            leaves = program.phases["eval"](*piece)
            for output in outputs:
                value = leaves[output.place]
                found[output.name].append((value.double() if value.is_floating_point() else value).numpy().copy())
    by_sample = {
        output.name: 0 if fixed and all(value.shape[:1] == (fixed,) for value in found[output.name]) else output.samples
        for output in outputs
    }
    return {name: Wanted(values, by_sample[name]) for name, values in found.items()}
