"""Programs as text. The first line of a golden file is the command that makes it: ``// RUN: case | pass{options} | ...``.

``pytest tests/golden --update-golden`` rewrites the text below that line; read the diff as you would read code.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
import torch

from sparsify.ir import trace
from sparsify.passes import PASSES, Pipeline
from sparsify.passes.base import split_pipeline
from tests.cases import case

FILES = sorted(Path(__file__).parent.glob("*.txt"))
RUN = "// RUN: "


def commanded(path: Path) -> str:
    """What stands behind ``// RUN:`` on the first line."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert first.startswith(RUN), f"{path.name}: the first line should be '{RUN}case | pass | ...', found {first!r}"
    return first.removeprefix(RUN)


def printed(command: str) -> str:
    """The logs of the passes as comments, then the program they leave; no weight's value reaches the text."""
    name, _, pipeline = (part.strip() for part in command.partition("|"))
    chosen = case(name)
    model = chosen.build()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            # Distinct values in a fixed order, so that masks by magnitude are the same with every generator of random numbers.
            count = parameter.numel()
            order = torch.arange(count, dtype=torch.float64) * 7919 % count + 1
            parameter.copy_((order / count / (index + 1)).view(parameter.shape))
    program = trace(model, chosen.args).eval()
    logs = ()
    if pipeline:
        program, logs = Pipeline.parse(pipeline).run(program)
    notes = "".join(f"// {line}\n" for log in logs for line in str(log).splitlines())
    return f"{RUN}{command}\n{notes}{program.text()}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_program_is_the_text_on_file(path, update_golden):
    have = printed(commanded(path))
    if update_golden:
        path.write_text(have, encoding="utf-8")
    want = path.read_text(encoding="utf-8")
    diff = difflib.unified_diff(want.splitlines(), have.splitlines(), path.name, "printed now", lineterm="")
    assert want == have, "\n".join(["run pytest --update-golden if this is meant:", *diff])


def test_every_pass_has_a_golden_program():
    used = {name for path in FILES for name, _ in split_pipeline(commanded(path).partition("|")[2] or "insert-masks")}
    assert sorted(PASSES.keys() - used) == []


def test_two_runs_print_the_same():
    command = "conv_bn | insert-masks{density=0.25} | insert-gradient-taps"
    assert printed(command) == printed(command)


def test_a_change_is_shown(tmp_path):
    path = tmp_path / "mlp.txt"
    path.write_text(printed("mlp").replace("relu", "gelu"))
    with pytest.raises(AssertionError, match=r"\+ .*relu"):
        test_the_program_is_the_text_on_file(path, update_golden=False)
    test_the_program_is_the_text_on_file(path, update_golden=True)
    assert path.read_text() == printed("mlp")
    path.write_text("mlp\n")
    with pytest.raises(AssertionError, match="first line"):
        commanded(path)
