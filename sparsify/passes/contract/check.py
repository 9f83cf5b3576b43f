"""`check_pass`: measures whether a pass does what it declares."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparsify.errors import PassError, SparsifyError, VerificationError
from sparsify.ir import Program, Stage
from sparsify.passes.base import CHANGED, UNCHANGED, Effect, Kept, Pass, Preserves
from sparsify.passes.contract.cases import CASES, Case
from sparsify.passes.contract.measuring import Run, State, effects, kept, run, state, trained
from sparsify.passes.contract.specs import false_specs
from sparsify.passes.contract.table import Row
from sparsify.passes.registry import Pipeline

SETUPS: Mapping[Stage, tuple[str, ...]] = {
    Stage.TRACED: ("",),
    Stage.MASKED: (
        "insert-masks{density=0.3}",
        "insert-masks{density=0.3} | insert-gradient-taps | insert-random-masks{rate=0.3} | record-randomness",
    ),
    Stage.FOLDED: (
        "insert-masks{density=0.3} | fold-masks",
        "insert-masks | fold-masks",
    ),
    Stage.DEPLOYED: (
        "insert-masks{density=0.3} | fold-masks | deploy",
        "deploy",
        "insert-masks{pattern=grouped:32 density=0.25 allocation=uniform} | fold-masks | deploy",
        "insert-masks{pattern=grouped:32:learned density=0.25 allocation=uniform} | fold-masks | deploy",
    ),
}
"""Pipelines that make the programs a pass is tried on, by the stage that it requires. Random masks are drawn. In programs with taps,
inactive weights are 0, as a trainer leaves them; in others they are not."""
_GRAPHS = {"train": Effect.TRAIN_GRAPH, "eval": Effect.EVAL_GRAPH}
CLOSELY = 3
"""Cases on which the slower checks run too: a second run gives the same result, and so does saving and loading."""


def check_pass(
    step: Pass, *, cases: Sequence[Case] = CASES, after: Sequence[str] | None = None, at_least: int = 3
) -> tuple[Row, ...]:
    """Try a pass on many programs and compare what it declares with what it does.

    For every case, and after every pipeline of ``after``, both phases run with gradients before and after the pass. The pass must only
    change what ``effects`` names, preserve outputs and gradients as ``preserves`` says, keep every node's spec true, leave the stage of
    ``ensures``, keep trainable parameters trainable, log changes exactly if there are some, and not touch the given program. It may only
    refuse a program with a `SparsifyError`. Over all cases, each declared effect must occur, and the pass must not preserve more than it
    declares.

    Args:
        step: the pass, with the options to be tried. It need not be registered.
        cases: models to try it on.
        after: pipelines that make the programs it is tried on; by default `SETUPS` of the stages that it requires.
        at_least: how many cases the pass should change at least.

    Returns:
        A row for each case and pipeline, which `table` shows.

    Raises:
        PassError: Listing every broken promise.
    """
    setups = tuple(after) if after is not None else tuple(text for stage in step.requires for text in SETUPS[stage])
    rows = list[Row]()
    for case in cases:
        for setup in setups:
            seen = len({row.case for row in rows if row.changed})
            rows.append(_tried(step, case, setup, closely=seen < CLOSELY))
    broken = [
        f"{row.case}{f' after {row.setup}' if row.setup else ''}: {fault}" for row in rows for fault in row.broken
    ]
    broken += _overall(step, rows, at_least)
    if broken:
        shown = "\n".join(f"  {line}" for line in broken[:40])
        raise PassError(f"{step} breaks {len(broken)} promise(s) of a pass:\n{shown}")
    return tuple(rows)


def _tried(step: Pass, case: Case, setup: str, *, closely: bool) -> Row:
    made = _prepared(case, setup)
    if isinstance(made, str):
        return Row(str(step), case.name, setup, refused=made)
    program, before, runs = made
    try:
        result, (log,) = Pipeline((step,)).run(program)
    except VerificationError as error:
        return Row(str(step), case.name, setup, broken=(f"makes a program that is not valid: {error}",))
    except SparsifyError as error:
        cause = error.__cause__
        fault = (f"ends in {type(cause).__name__}: {cause}",) if cause and not isinstance(cause, SparsifyError) else ()
        return Row(str(step), case.name, setup, refused=str(error).splitlines()[0], broken=fault)
    now = state(result)
    found = effects(before, now)
    changed = [phase for phase in program.phases if found & (_GRAPHS[phase] | Effect.WEIGHTS)]
    again = {p: run(result, p, case.args, runs[p].names) for p in changed if p in result.phases}
    preserved = {p: kept(runs[p], again[p]) if p in again else CHANGED if p in changed else UNCHANGED for p in runs}
    broken = list(_broken(step, program, result, found, preserved, bool(log.changed)))
    if trained(before) != {**trained(before), **{k: v for k, v in trained(now).items() if k in trained(before)}}:
        broken.append("changes which parameters train")
    if effects(before, state(program)) is not Effect.NONE:
        broken.append("changes the program that it is given a copy of")
    broken += [line for phase in again for line in false_specs(result, phase, _fewer(result, case.args))]
    if closely and found is not Effect.NONE:
        broken += _close_look(step, program, now, result)
    return Row(str(step), case.name, setup, found is not Effect.NONE, "", found, preserved, tuple(broken))


def _broken(
    step: Pass, before: Program, after: Program, found: Effect, preserved: Mapping[str, Kept], logged: bool
) -> Iterator[str]:
    """Yield the promises that the pass breaks on one program."""
    if found & ~step.effects:
        yield f"changes {_names(found & ~step.effects)}, which its effects do not name"
    for phase in preserved:
        for what, said, seen in _levels(step, phase, preserved[phase]):
            if seen < said:
                yield f"{what} of {phase} should be preserved {said}, found {seen}"
    wanted = step.ensures or before.stage
    if after.stage is not wanted:
        yield f"leaves stage {after.stage.value}, not {wanted.value}"
    if logged and not found:
        yield "its log names changes, but there are none"
    if found and not logged:
        yield f"changes {_names(found)}, but its log names no change"


def _overall(step: Pass, rows: Sequence[Row], at_least: int) -> Iterator[str]:
    """Yield the broken promises that only show over all programs together."""
    changed = {row.case for row in rows if row.changed}
    if len(changed) < at_least:
        refused = sorted({row.refused for row in rows if row.refused})[:3]
        why = f" Refusals: {'; '.join(refused)}" if refused else ""
        yield f"changes {len(changed)} case(s) ({', '.join(sorted(changed)) or 'none'}), should change {at_least} or more.{why}"
    seen = functools.reduce(lambda a, b: a | b, (row.effects for row in rows), Effect.NONE)
    if step.effects & ~seen:
        yield f"declares the effects {_names(step.effects & ~seen)}, which no case shows"
    tried = [row for row in rows if row.preserved]
    for phase in step.preserves:
        for place, what in enumerate(("outputs", "gradients")):
            levels = [tuple(_levels(step, phase, r.preserved[phase]))[place] for r in tried if phase in r.preserved]
            if levels and (least := min(level[2] for level in levels)) > levels[0][1]:
                yield f"declares that {what} of {phase} are preserved {levels[0][1]}; every case preserves them {least}"
    text = str(step).partition("{")[2].removesuffix("}")
    if type(step).parse_options(text) != step:
        yield f"is not what its own spelling {step} stands for"


def _close_look(step: Pass, program: Program, once: State, result: Program) -> Iterator[str]:
    """Check that a second run gives the same result, and that the result can be saved and loaded."""
    if effects(once, state(Pipeline((step,))(program))) is not Effect.NONE:
        yield "gives something else when it is run again"
    with tempfile.TemporaryDirectory() as folder:
        try:
            result.save(Path(folder) / "program.sparsify")
            loaded = Program.load(Path(folder) / "program.sparsify")
        except SparsifyError as error:
            yield f"makes a program that cannot be saved and loaded: {error}"
            return
    if loaded.text() != result.clone().text() or loaded.stage is not result.stage:
        yield "makes a program that is another one when it was saved and loaded"


def _levels(step: Pass, phase: str, seen: Kept) -> Iterable[tuple[str, Preserves, Preserves]]:
    """Return (what, declared level, found level) for outputs and gradients."""
    said = step.preserves[phase]
    return (("outputs", said.outputs, seen.outputs), ("gradients", said.gradients, seen.gradients))


@functools.lru_cache(maxsize=512)
def _prepared(case: Case, setup: str) -> tuple[Program, State, dict[str, Run]] | str:
    """Make the program for a pass, with its state and what it computes; or return why it cannot be made."""
    program = case.trace().eval()
    try:
        program = Pipeline.parse(setup)(program) if setup else program
    except SparsifyError as error:
        return f"not made: {str(error).splitlines()[0]}"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for site in program.random_mask_sites():
            visible = program.get_buffer(site.visible)
            visible.copy_(torch.rand(visible.shape, generator=generator) >= site.rate)
        for name, mask in program.masks().items() if program.taps() else ():
            program.get_parameter(name).mul_(mask)
        for name, buffer in program.named_buffers():
            if (
                name.endswith(("running_mean", "running_var")) and len(buffer.unique()) == 1
            ):  # running statistics that have not seen data
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return program, state(program), {phase: run(program, phase, case.args) for phase in program.phases}


def _fewer(program: Program, args: Sequence[Any]) -> list[Any]:
    """Remove one sample from flat inputs, if the batch may vary."""
    batch = program.dynamic_batch
    return [
        x[:-1] if batch and spec.shape and spec.shape[0] == "N" else x
        for spec, x in zip(program.input_specs, args, strict=True)
    ]


def _names(found: Effect) -> str:
    return ", ".join(effect.name or "" for effect in found)
