"""Finds the passes that lead from one stage to another, to advise users if a pass does not accept a program."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sparsify.ir import Stage

if TYPE_CHECKING:
    from sparsify.passes.base import Pass


def route(passes: Iterable[type[Pass]], start: Stage, goals: Sequence[Stage]) -> tuple[type[Pass], ...] | None:
    """Find the shortest sequence of passes from stage ``start`` to one of ``goals``; None if there is none."""
    known, paths = list(passes), {start: tuple[type["Pass"], ...]()}
    waiting = deque([start])
    while waiting:
        stage = waiting.popleft()
        if stage in goals:
            return paths[stage]
        for step in known:
            if stage in step.requires and step.ensures is not None and step.ensures not in paths:
                paths[step.ensures] = (*paths[stage], step)
                waiting.append(step.ensures)
    return None


def advice(step: type[Pass], stage: Stage, passes: Iterable[type[Pass]]) -> str:
    """Say what to do if ``step`` does not accept a program of ``stage``, based on what the passes require and ensure."""
    known = list(passes)
    if ahead := route(known, stage, step.requires):
        return f"Run {' | '.join(p.name for p in ahead)} first."
    back = [path for wanted in step.requires if (path := route(known, wanted, (stage,)))]
    if back:
        first = min(back, key=len)[0]
        if first is step:
            return "It has run already: go on from this program, or start again from the one that it was given."
        return f"{step.name} comes before {first.name}: start from the program that {first.name} was given."
    return "No pass known here makes a program of that stage from this one."
