"""The proof: a written file computes what the program does, in ONNX Runtime, on real inputs.

Every number of every output is compared on its own: with what rounding moves that output of that sample (`sparsify.exporters.rounding`),
and with how far that output moves over the samples. A large value elsewhere, in another class or another sample, hides nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from sparsify.errors import ExportError
from sparsify.exporters.compared import Compared, Point, as_numbers, distance
from sparsify.exporters.late_masks import with_late_masks
from sparsify.exporters.rounding import disturbed
from sparsify.exporters.signature import (
    batch_size,
    made_up,
    refuse_alike,
    sized,
    sizes_of,
    tensor_outputs,
)
from sparsify.exporters.size_ranges import proof_sizes
from sparsify.ir import Program, surgery
from sparsify.ir.agreement import put_back
from sparsify.ir.dimensions import BATCH
from sparsify.tasks import Task
from sparsify.timing import opened

Array = np.ndarray
FLOOR = 1e-5
"""What an output may be off by in any case, relative to how far it moves over the samples."""
ALLOWANCE = 2.0
"""What an output may be off by, relative to what `disturbed` values move it."""
ROUNDS = 8
"""Disturbed runs before a file is refused; one is enough for most files to be accepted, and more only widen the tolerance."""


@dataclass(frozen=True)
class Parity:
    """What was compared between the file and the program, and what could not be.

    Errors are shown relative to the size of the number, or of its unit (median over the samples, or spread) where that is larger.

    Attributes:
        batches: the batch sizes at which both were run.
        sizes: those of other dimensions that vary, by name.
        samples: inputs in the largest batch.
        units: outputs per sample that were compared, over all outputs: those that the samples move beyond their tolerance.
        largest_error: the largest |file - program| of these units, relative to that size.
        tolerance: the largest that any of them was allowed, relative to that size.
        share: the largest error as a share of the tolerance of its own number; at most 1.
        decisions: those of the task (of samples, labels, positions) that were compared, at all batch sizes; all agreed.
        ties: those whose two highest scores are closer than their tolerance, so that there was no decision to compare.
        uncompared: what was not compared, a line each: units that no sample moves, outputs that are not in the file.
    """

    batches: tuple[int, ...]
    samples: int
    units: int
    largest_error: float
    tolerance: float
    share: float
    decisions: int
    ties: int
    uncompared: tuple[str, ...] = ()
    sizes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


@dataclass
class _Run:
    """A batch: the program's outputs, and how far disturbed values have moved each of their numbers so far."""

    inputs: list[Tensor]
    wanted: list[Array]
    moved: list[Array]
    rounds: int = 0


@dataclass(frozen=True)
class _Scale:
    """For one output [N, U]: median over samples and spread [U] of each unit, and what rounding moves it by, in all and [U]."""

    median: Array
    spread: Array
    noise: Array
    typical: float


class Reference:
    """What a program computes from real inputs, and how exactly that can be known; files are compared with it.

    Args:
        program: as the user trained it, before any folding or lowering.
        inputs: real ones, a tensor per input of the program.
        fed: what the file takes in their place, where that is something else.
        made_up: they are not, and the program may fail on them.
        task: what the outputs mean; None: as the program says.

    Raises:
        ExportError: If the inputs do not fit the program or each other.
    """

    def __init__(
        self,
        program: Program,
        inputs: Sequence[Tensor],
        *,
        fed: Sequence[Tensor] | None = None,
        made_up: bool = False,
        task: Task | None = None,
    ) -> None:
        self._made_up, self._task = made_up, task
        if any(tensor.device.type != "cpu" for tensor in (*program.parameters(), *program.buffers())):
            program = program.clone().eval()
            surgery.move(program, torch.device("cpu"))
        self.program = program
        self._phase = with_late_masks(program, "eval")
        self.outputs = tensor_outputs(program, task)
        given = [value.detach().cpu() for value in inputs]
        self.samples = batch_size(program, given)
        refuse_alike(program, given)
        self._lone = self.samples == 1
        self.inputs, self._fed = given, [value.detach().cpu() for value in fed] if fed is not None else None
        sizes = sizes_of(program, given)
        self._check_sizes(sizes)
        points = proof_sizes(program, sizes, self.samples)
        self.samples = points[0].get(BATCH, self.samples)
        self.inputs = sized(program, given, points[0])
        self._fed = sized(program, self._fed, points[0]) if self._fed is not None else None
        self.unrun: list[str] = []
        self._main: Point = tuple(points[0].items())
        self._runs: dict[Point, _Run] = {}
        for point in points:
            if run := self._run(sized(program, self.inputs, point), point):
                self._runs[tuple(point.items())] = run

    def _check_sizes(self, sizes: Mapping[str, int]) -> None:
        for name, allowed in self.program.ranges["eval"].items():
            if name != BATCH and name in sizes and sizes[name] not in allowed:
                raise ExportError(
                    f"the inputs have {name} = {sizes[name]}, and {self.program.name!r} holds for {allowed.text(name)}. Give inputs of "
                    f"such sizes."
                )

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes at which the program runs, ascending."""
        return tuple(sorted({dict(point).get(BATCH, self.samples) for point in self._runs}))

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Sizes of other dimensions at which it runs, ascending."""
        names = dict.fromkeys(name for point in self._runs for name, _ in point if name != BATCH)
        return {name: tuple(sorted({dict(point)[name] for point in self._runs})) for name in names}

    def _feeds(self, point: Point) -> dict[str, Array]:
        """Inputs of a run by their name."""
        given = self._runs[point].inputs if self._fed is None else sized(self.program, self._fed, dict(point))
        return {spec.name: x.numpy() for spec, x in zip(self.program.input_specs, given, strict=True)}

    def _run(self, inputs: list[Tensor], sizes: dict[str, int]) -> _Run | None:
        before = torch.random.get_rng_state()
        try:
            leaves = self._leaves(inputs)
        except (IndexError, RuntimeError) as error:
            if tuple(sizes.items()) == self._main and not self._made_up:
                raise ExportError(
                    f"{self.program.name!r} fails on the inputs given: {_first_line(error)}. Give inputs like those it was traced with."
                ) from error
            self.unrun.append(f"{_shown(sizes, self.samples)}: the program fails there ({_first_line(error)})")
            return None
        if not torch.equal(before, torch.random.get_rng_state()):
            torch.random.set_rng_state(before)
            raise ExportError(
                f"{self.program.name!r} draws random numbers in eval mode, so no file can be compared with it. Make the eval mode of the "
                f"model deterministic. Nothing was written."
            )
        wanted = [as_numbers(leaves[output.place]) for output in self.outputs]
        lost = [o.name for o, value in zip(self.outputs, wanted, strict=True) if value.size and np.isnan(value).all()]
        if lost and not self._made_up:
            names = [name for name, value in self.program.named_parameters() if not value.isfinite().all()]
            weights = f"Its {', '.join(names[:4])} hold values that are not finite: train at a lower learning rate."
            advice = weights if names else "Give finite inputs, or find where forward makes NaN of them."
            raise ExportError(
                f"{self.program.name!r} returns nothing but NaN in {', '.join(lost)} on the inputs given, which proves no file."
                f" {advice} Nothing was written."
            )
        run = _Run(inputs, wanted, [np.zeros(value.shape) for value in wanted])
        self._disturb(run)
        return run

    def _leaves(self, inputs: list[Tensor], seed: int | None = None) -> list[Tensor]:
        with _kept(self.program), torch.no_grad():
            return list(self._phase(*inputs)) if seed is None else disturbed(self._phase, inputs, seed)

    def _disturb(self, run: _Run) -> None:
        leaves = self._leaves(run.inputs, seed=run.rounds)
        run.rounds += 1
        for place, (output, want) in enumerate(zip(self.outputs, run.wanted, strict=True)):
            run.moved[place] = np.maximum(run.moved[place], distance(want, as_numbers(leaves[output.place])))

    def _table(self, place: int, values: Array) -> Array:
        """[samples, units] of an output."""
        dimension = self.outputs[place].samples
        if dimension is None:
            return values.reshape(1, -1)
        return np.moveaxis(values, dimension, 0).reshape(values.shape[dimension], -1)

    def _scale(self, place: int, run: _Run) -> _Scale:
        wanted, moved = (self._table(place, values[place]) for values in (run.wanted, run.moved))
        finite = np.isfinite(wanted)
        means = np.where(finite, wanted, 0.0).sum(axis=0) / np.maximum(finite.sum(axis=0), 1)
        low, median, high = np.quantile(np.where(finite, wanted, means), (0.25, 0.5, 0.75), axis=0)
        spread = high - low
        if len(wanted) < 4 and median.size:
            spread = np.full_like(median, np.median(np.abs(median - np.median(median))))
        noise = np.median(moved, axis=0)
        return _Scale(median, spread, noise, float(np.median(noise)) if noise.size else 0.0)

    def _tolerances(self, place: int, run: _Run) -> tuple[Array, Array]:
        """For every number of an output, [N, U]: what the file may be off by, and the size that this is shown relative to."""
        scale = self._scale(place, self._runs[self._main])
        wanted, moved = self._table(place, run.wanted[place]), self._table(place, run.moved[place])
        if wanted.shape[1] != len(scale.median):  # the units are as many as the samples
            scale = self._scale(place, run)
        known = np.where(np.isfinite(wanted), wanted, scale.median)
        reach = np.maximum(scale.spread, np.abs(known - scale.median))
        size = np.maximum(np.maximum(scale.spread, np.abs(known)), np.abs(scale.median))
        rows, columns = np.median(moved, axis=1, keepdims=True), scale.noise
        with np.errstate(all="ignore"):
            likely = np.minimum(rows * columns / scale.typical if scale.typical else 0.0, np.maximum(rows, columns))
        if not self.outputs[place].epsilon:
            return np.where(moved > 0, np.inf, 0.0), size  # a whole number that rounding changes is a tie
        own = np.abs(known) * self.outputs[place].epsilon * 2
        return ALLOWANCE * np.maximum(moved, np.nan_to_num(likely)) + FLOOR * reach + own, size

    def compare(self, session: onnxruntime.InferenceSession) -> Parity:
        """Compare a file with the program.

        Raises:
            ExportError: If an output is further off than its tolerance, or the inputs cannot tell a wrong file from a right one.
        """
        names, taken = [value.name for value in session.get_outputs()], {value.name for value in session.get_inputs()}
        missing = [output.name for output in self.outputs if output.name not in names]
        if missing:
            raise ExportError(
                f"the file has outputs {', '.join(names)}, and lacks {', '.join(missing)}. Please report this model."
            )
        found: list[Compared] = []
        for point in self._runs:
            feeds = {name: value for name, value in self._feeds(point).items() if name in taken}
            results = dict(zip(names, session.run(None, feeds), strict=True))
            for place, output in enumerate(self.outputs):
                found.append(self._compare(place, point, np.asarray(results[output.name])))
        told = {one.output.name: one.told(lone=self._lone) for one in found if one.point == self._main}
        parity = self._parity(found, told)
        enough = self._tells(told) or self._made_up or self._fed is not None
        return parity if enough else self._by_made_up_inputs(session, parity)

    def _tells(self, told: Mapping[str, Array]) -> bool:
        by_sample = [output.name for output in self.outputs if output.samples is not None]
        return any(told[name].any() for name in (by_sample or told))

    def _by_made_up_inputs(self, session: onnxruntime.InferenceSession, parity: Parity) -> Parity:
        """The inputs given move no output, as where a network is dead for them: compare on inputs that may move it."""
        text = (
            "no output moves with the inputs given; random inputs of 1 to 1000 times their size were compared as well"
        )
        other = Reference(self.program, made_up(self.program, self.inputs), made_up=True, task=self._task)
        parity = other.compare(session) if other.batches else parity
        if not parity.units:
            text = f"{text}, and move none either: {self.program.name!r} seems to be constant"
        return dataclasses.replace(parity, samples=self.samples, uncompared=(text, *parity.uncompared))

    def _compare(self, place: int, point: Point, result: Array) -> Compared:
        output, run = self.outputs[place], self._runs[point]
        want = run.wanted[place]
        if want.shape != result.shape:
            raise ExportError(
                f"output {output.name!r} has shape {result.shape} in the file, {want.shape} in the program, at {self._at(point)}. "
                f"Nothing was written. Please report this model."
            )
        table = self._table(place, want)
        error = distance(table, self._table(place, as_numbers(torch.from_numpy(np.array(result)))))
        tolerance, size = self._tolerances(place, run)
        while (error > tolerance).any() and run.rounds < ROUNDS:
            self._disturb(run)
            tolerance, size = self._tolerances(place, run)
        if (error > tolerance).any():
            raise ExportError(self._refusal(place, point, error, tolerance, result))
        shape = table.shape if output.samples is None else np.moveaxis(want, output.samples, 0).shape
        return Compared(output, point, table, error, tolerance, size, shape)

    def _refusal(self, place: int, point: Point, error: Array, tolerance: Array, result: Array) -> str:
        run, name = self._runs[point], self.outputs[place].name
        again = as_numbers(self._leaves(run.inputs)[self.outputs[place].place])
        if not np.array_equal(again, run.wanted[place], equal_nan=True):
            return (
                f"the program gives output {name!r} differently each time it is run on the same inputs: it draws random numbers in eval "
                f"mode. Make the eval mode of the model deterministic; a file cannot be compared with chance. Nothing was written."
            )
        wrong = error > tolerance
        with np.errstate(all="ignore"):
            worst = np.unravel_index(np.argmax(np.where(wrong, error / tolerance, 0.0)), error.shape)
        want, have = (self._table(place, values)[worst] for values in (run.wanted[place], result))
        samples, units = wrong.any(axis=1).sum(), wrong.any(axis=0).sum()
        where = (
            f"sample {worst[0]}, unit {worst[1]}" if self.outputs[place].samples is not None else f"entry {worst[1]}"
        )
        return (
            f"output {name!r} of the ONNX file differs from the program at {self._at(point)}: {want:.7g} in the program, {have:.7g} in the "
            f"file for {where}, off by {error[worst]:.2e} where {tolerance[worst]:.2e} is allowed; {samples} of {len(wrong)} samples and "
            f"{units} of {wrong.shape[1]} units differ. Nothing was written. Please report this model."
        )

    def _at(self, point: Point) -> str:
        return _shown(dict(point), self.samples)

    def _parity(self, found: Sequence[Compared], told: Mapping[str, Array]) -> Parity:
        whole = [one for one in found if one.point == self._main]
        uncompared = [*self.unrun]
        for one in whole:
            missed = int((~told[one.output.name]).sum())
            if missed:
                uncompared.append(
                    f"{missed} of {one.wanted.shape[1]} units of output {one.output.name!r}: the inputs do not move them, their value was "
                    f"compared"
                )
        named = {output.name for output in self.outputs}
        for name in self.program.output_names("eval"):
            if name not in named:
                uncompared.append(f"output {name!r}: not a tensor, it is not in the file")
        largest = tolerance = share = 0.0
        for one in found:
            mask = told[one.output.name] if one.wanted.shape[1] == len(told[one.output.name]) else slice(None)
            with np.errstate(all="ignore"):
                sizes = one.size[:, mask]
                errors = one.error[:, mask] / sizes, one.tolerance[:, mask] / sizes
                shares = one.error / one.tolerance
            largest, tolerance = (
                max(old, float(np.max(new, where=np.isfinite(new), initial=0.0)))
                for old, new in zip((largest, tolerance), errors, strict=True)
            )
            share = max(share, float(np.max(shares, where=np.isfinite(shares), initial=0.0)))
        clear, ties = (sum(counts) for counts in zip(*(one.decisions() for one in found), strict=True))
        units = sum(int(mask.sum()) for mask in told.values())
        return Parity(
            self.batches, self.samples, units, largest, tolerance, share, clear, ties, tuple(uncompared), self.sizes
        )


def prove(file: bytes | Path, reference: Reference) -> Parity:
    """`Reference.compare` of a file; from a path the runtime reads it without a copy of its bytes in memory."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return reference.compare(opened(file if isinstance(file, bytes) else str(file), options))


def _shown(sizes: Mapping[str, int], samples: int) -> str:
    others = (f"{name} = {size}" for name, size in sizes.items() if name != BATCH)
    return ", ".join([f"batch {sizes.get(BATCH, samples)}", *others])


@contextmanager
def _kept(program: Program) -> Generator[None]:
    """Put back the buffers that a run writes: the program is not the proof's to change."""
    before = {name: buffer.clone() for name, buffer in program.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in program.named_buffers():
            put_back(buffer, before[name])


def _first_line(error: Exception) -> str:
    return next((line.strip()[:200] for line in str(error).splitlines() if line.strip()), type(error).__name__)
