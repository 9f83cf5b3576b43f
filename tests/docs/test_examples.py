"""What the docs show works: Python blocks run in order, command lines are parsed by the command itself."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import typer

from sparsify.cli import app
from sparsify.methods import METHODS
from sparsify.parts.patterns import parse_pattern
from sparsify.passes import Pipeline
from sparsify.passes.registry import PASSES

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
TOURS = ROOT / "docs" / "command.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def command_lines() -> list[tuple[Path, str]]:
    lines = []
    for page in PAGES:
        for line in page.read_text().splitlines():
            text = line.strip()
            if re.match(r"sparsify [a-z]", text) and (
                line.startswith("    ") or text in "\n".join(blocks(page, "console"))
            ):
                lines.append((page, text))
    return lines


@pytest.fixture
def registry():
    before = dict(PASSES)
    yield
    PASSES.clear()
    PASSES.update(before)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch, registry):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("docs_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), module.__dict__)


def test_the_docs_have_commands_and_they_are_found():
    assert len(command_lines()) >= 12


@pytest.mark.parametrize(("page", "line"), command_lines(), ids=lambda value: getattr(value, "name", str(value))[:60])
def test_command_lines_are_understood(page, line):
    words = shlex.split(line.split(" #")[0])[1:]
    group: Any = typer.main.get_command(app)
    command = group.commands.get(words[0])
    assert command is not None, f"{page.name}: no command {words[0]!r}"
    context = command.make_context(words[0], list(words[1:]))
    given = context.params
    if given.get("method"):
        assert given["method"] in METHODS
    if given.get("pattern"):
        parse_pattern(given["pattern"])
    if given.get("pipeline"):
        Pipeline.parse(given["pipeline"])


def test_every_command_and_recipe_key_is_in_the_tour():
    from dataclasses import fields

    from sparsify.recipe import Recipe

    text = TOURS.read_text()
    group: Any = typer.main.get_command(app)
    for name in group.commands:
        assert f"sparsify {name}" in text, name
    for field in fields(Recipe):
        assert f"`{field.name}`" in text, field.name


def test_every_command_explains_itself():
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        assert command.help, name
        for parameter in command.params:
            if parameter.name != "help":
                assert getattr(parameter, "help", None), f"{name} {parameter.name}"
