"""Programs as text. The first line of a golden file makes the rest: ``// RUN: case | pass{options} | ...``.

After a change that should show, run ``pytest tests/golden --update-golden`` and read the diff as code. Allocations that look at
weight values are not used here, so that the counts do not depend on how a version of torch draws initial weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsify.files import write_atomically
from sparsify.passes import PASSES, Pipeline
from tests.cases import case

FILES = sorted(Path(__file__).parent.glob("*.txt"))
PREFIX = "// RUN: "


def made(command: str) -> str:
    """The command line, the log of what was left alone or decided, and the program's text."""
    name, _, passes = command.partition(" | ")
    found = case(name)
    program, logs = found.trace(), ()
    if passes:
        program, logs = Pipeline.parse(passes).run(program)
    left_alone = [f"// {step.name}: {where}: {reason}" for step in logs for where, reason in step.skipped]
    notes = [f"// {step.name}: {where}: {what}" for step in logs for where, what in step.notes]
    return "\n".join([f"{PREFIX}{command}", *left_alone, *notes, program.text()])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_program(file: Path, update_golden: bool) -> None:
    text = file.read_text()
    first = text.splitlines()[0]
    assert first.startswith(PREFIX), f"{file.name} should begin with {PREFIX}"
    now = made(first.removeprefix(PREFIX))
    if update_golden:
        write_atomically(file, now.encode())
        return
    assert text == now, f"{file.name} differs; where the change is meant: pytest tests/golden --update-golden"


def test_every_pass_is_shown() -> None:
    commands = [file.read_text().splitlines()[0] for file in FILES]
    shown = {type(step).name for c in commands if " | " in c for step in Pipeline.parse(c.partition(" | ")[2]).passes}
    assert shown == set(PASSES)


def test_a_changed_program_is_seen() -> None:
    assert made("mlp | insert-masks") != made("mlp | insert-masks{keep-dense=5.weight}")
    assert "// insert-masks: 5.weight: asked to stay dense\n" in made("mlp | insert-masks{keep-dense=5.weight}")
