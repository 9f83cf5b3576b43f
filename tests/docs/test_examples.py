"""Everything the documentation shows is true: code runs, output is what it prints, commands parse, tables are generated."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

import sparsify.cli as cli
from sparsify.heads import HEADS, fitting
from sparsify.methods.registry import METHODS, WRAPPERS, options
from sparsify.parts.allocation import ALLOCATIONS
from sparsify.parts.patterns import parse_pattern, spellings
from sparsify.passes import PASSES, Pipeline
from sparsify.runs.grid import parse_grid
from sparsify.runs.keys import TABLES, spelt
from sparsify.runs.pairs import parse_pairs
from sparsify.runs.recipe import Recipe, parse_recipe
from sparsify.tasks import TASKS
from sparsify.training import Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHARED_PAGES = {
    "calibrating_losses": (
        *("label-smoothing", "maxsup", "focal", "dual-focal", "mbls", "acls", "mmce", "logit-norm"),
        *("mixup", "rankmixup", "ps-kd"),
    ),
    "protecting_classes": ("balancing-act", "class-weighted"),
}
"""Pages of `docs/methods` that tell of several methods, by their stem."""
SECTION = re.compile(r"<!-- generated: (?P<what>[a-z -]+) -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: language, text, and the line of the page its text begins on, counted from 1."""

    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    opened: tuple[str, int] | None = None
    lines = page.splitlines()
    for number, line in enumerate(lines, start=1):
        fence = re.fullmatch(r"```(\w*)", line)
        if fence and opened is None:
            opened = (fence[1], number + 1)
        elif fence and opened is not None:
            language, first = opened
            found.append(Block(language, "".join(f"{text}\n" for text in lines[first - 1 : number - 1]), first))
            opened = None
    assert opened is None, f"a fence opened above line {opened and opened[1]} is never closed"
    return found


def expected_output(page: str, block: Block, following: Block | None) -> Block | None:
    """The ``text`` block right behind a Python block: what it prints."""
    if following is None or following.language != "text":
        return None
    between = page.splitlines()[block.line - 1 + block.text.count("\n") + 1 : following.line - 2]
    return None if any(line.strip() for line in between) else following


def commands(page: str) -> list[str]:
    """Every ``sparsify ...`` line of shell blocks and indented code, and every inline span, comments cut off."""
    shown = [
        line for block in blocks(page) if block.language in ("sh", "console", "") for line in block.text.splitlines()
    ]
    shown += [line for line in page.splitlines() if line.startswith("    ")]
    found = [line.strip().removeprefix("$ ") for line in shown]
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    found += re.findall(r"`(sparsify [^`]+)`", prose)
    return [line for line in found if re.match(r"sparsify\s", line)]


def subcommands() -> dict[str, TyperCommand]:
    """The subcommands by name."""
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    return {name: command for name, command in group.commands.items() if isinstance(command, TyperCommand)}


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """Subcommand and parameters as the real command reads them; options are known and of the right types."""
    name, *arguments = shlex.split(line, comments=True)[1:]
    if name == "--help":
        return name, {}
    assert name in subcommands(), f"`{line}`: there is no command {name!r}"
    bare = not arguments or arguments == ["--help"]  # `sparsify opt` in prose names the command
    context = subcommands()[name].make_context(name, [] if bare else arguments, resilient_parsing=bare)
    return name, context.params


@pytest.fixture
def registries():
    """What a page registers is forgotten after it."""
    with PASSES.forgetting(), METHODS.forgetting(), WRAPPERS.forgetting(), TASKS.forgetting(), HEADS.forgetting():
        yield


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run_and_print_what_is_shown(page, tmp_path, monkeypatch, registries, update_golden):
    text = page.read_text(encoding="utf-8")
    found = blocks(text)
    module = types.ModuleType(f"page_{page.stem.lower().replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    torch.manual_seed(0)
    updates: list[tuple[Block, str]] = []
    for index, block in enumerate(found):
        if block.language != "python":
            continue
        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(printed):
            exec(code, module.__dict__)
        shown = expected_output(text, block, found[index + 1] if index + 1 < len(found) else None)
        if shown is not None and update_golden:
            updates.append((shown, printed.getvalue()))
        elif shown is not None:
            assert shown.text == printed.getvalue(), f"{page.name}:{shown.line}; run pytest --update-golden"
    lines = text.splitlines(keepends=True)
    for shown, output in reversed(updates):
        lines[shown.line - 1 : shown.line - 1 + shown.text.count("\n")] = [output]
    if updates:
        page.write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """The repository as the working folder, and in it ``my.py`` with the method and the wrapper that a page writes."""
    for path in ROOT.iterdir():
        (tmp_path / path.name).symlink_to(path)
    written = blocks((ROOT / "docs" / "writing_a_method.md").read_text(encoding="utf-8"))
    (tmp_path / "my.py").write_text("\n".join([block.text for block in written if block.language == "python"][:2]))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page):
    for line in commands(page.read_text(encoding="utf-8")):
        check(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sparsify ruin", "no command"),
        ("sparsify run --sparsty 0.9", "No such option"),
        ("sparsify run --epochs many", "valid int"),
        ("sparsify run --method riggle", "no method"),
        ("sparsify run --pattern nm:4:2", "0 < N < M"),
        ("sparsify run --set method.options.update_evry=5", "no option"),
        ("sparsify run --recipe recipes/nothing.toml", "cannot read the recipe"),
        ("sparsify compare recipes/digits.toml", "has no .grid."),
        ("sparsify compare recipes/compare_digits.toml --set grid.methods=riggle", "no method"),
        ("sparsify opt p.sparsify 'insert-mask'", "no pass"),
        ("sparsify opt p.sparsify 'insert-masks{densty=0.1}'", "no option"),
    ],
)
def test_a_wrong_command_is_found(line, message):
    assert commands(f"```sh\n{line}  # a comment\n```\n") == [f"{line}  # a comment"]
    with pytest.raises(Exception, match=message):
        check(line)


def check(line: str) -> None:
    """Fail unless the command line would be accepted: options, recipe keys, methods, patterns and passes exist."""
    name, given = parsed(line)
    if name == "opt" and given["pipeline"]:
        pipeline = Pipeline.parse(given["pipeline"])
        assert Pipeline.parse(str(pipeline)) == pipeline
    if name == "run":
        keys = {key: value for key, value in given.items() if key in vars(Recipe())}
        recipe = parse_recipe(given["recipe"], {**keys, **parse_pairs(given["set_"] or [])})
        parse_pattern(recipe.pattern)
    if name == "compare" and given["recipe"]:
        parse_grid(given["recipe"], given["set_"] or [])


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_recipes_hold(page, tmp_path):
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "toml" and not block.text.startswith("[project"):  # a plug-in's own
            (tmp_path / "recipe.toml").write_text(block.text)
            if "[grid]" in block.text:
                parse_grid(tmp_path / "recipe.toml")
            else:
                parse_recipe(tmp_path / "recipe.toml", {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_named_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:docs|examples|recipes|tests|sparsify|benchmarks)/[\w./-]+)`", text)
    named += re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    for name in named:
        assert (ROOT / name).exists() or (page.parent / name).exists(), f"{page.name} names {name}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_generated_sections_are_current(page, update_golden):
    text = page.read_text(encoding="utf-8")

    def current(match: re.Match[str]) -> str:
        return f"<!-- generated: {match['what']} -->\n{generated(match['what'])}<!-- end -->"

    fresh = SECTION.sub(current, text)
    if update_golden:
        page.write_text(fresh, encoding="utf-8")
    else:
        assert text == fresh, f"{page.name} is out of date; run pytest --update-golden"


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "methods").glob("*.md")), ids=lambda page: page.stem)
def test_the_page_of_a_method_tells_of_every_option(page):
    text = page.read_text(encoding="utf-8")
    told = SHARED_PAGES.get(page.stem, (page.stem,))
    assert {*told} <= {*METHODS, *WRAPPERS}, f"docs/methods/{page.name} is called after no method"
    assert [option for name in told for option in options(name) if f"`{option}`" not in text] == []
    for section in ("## The idea", "## Equations", "## Options", "## What was measured here", "## When to use it"):
        assert section in text, section


def test_every_command_has_its_section_and_every_option_its_help():
    sections = {match["what"] for match in SECTION.finditer((ROOT / "docs" / "command.md").read_text(encoding="utf-8"))}
    for name, command in subcommands().items():
        assert f"command {name}" in sections or not command.params, f"docs/command.md lacks `sparsify {name}`"
        assert command.help
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"sparsify {name}: {parameter.name} has no help"
    assert {"commands", "keys", "methods", "passes", "patterns"} <= sections


# --- generated tables


def generated(what: str) -> str:
    """The Markdown of a generated section."""
    tables = {
        "commands": _commands, "keys": _keys, "methods": _methods, "passes": _passes, "patterns": _patterns, "heads": _heads,
        "allocations": _allocations,
    }  # fmt: skip
    if what.startswith("command "):
        return _options(what.removeprefix("command "))
    if what.startswith("example "):
        return _example(what.removeprefix("example "))
    return tables[what]()


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _example(name: str) -> str:
    """A file of the plug-in, without its docstring."""
    text = (ROOT / "examples" / "plugin" / "sparsify_example" / f"{name}.py").read_text(encoding="utf-8")
    code = text.partition('"""\n\n')[2]
    return f"```python\n{code}```\n"


def _commands() -> str:
    return _table(
        ("command", "what it does"),
        [(f"`sparsify {name}`", (command.help or "").splitlines()[0]) for name, command in subcommands().items()],
    )


def _options(name: str) -> str:
    rows = []
    for parameter in subcommands()[name].params:
        flags = parameter.opts if isinstance(parameter, TyperOption) else [str(parameter.name).upper()]
        rows.append(
            (", ".join(f"`{flag}`" for flag in flags), _spelt(parameter.default), str(getattr(parameter, "help", "")))
        )
    return _table(("option", "default", "meaning"), rows)


def _spelt(value: object) -> str:
    if (
        value is None
        or value == ()
        or value is inspect.Parameter.empty
        or (callable(value) and not hasattr(value, "__name__"))
    ):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{getattr(value, '__name__', value)}`"


def attributes(doc: str) -> dict[str, str]:
    """Names and meanings of the ``Attributes:`` section of a docstring."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(doc).partition("Attributes:\n")[2].splitlines():
        if match := re.fullmatch(r" {4}([a-z_, ]+): (.*)", line):
            names = match[1].split(", ")
            found |= {name: match[2] for name in names}
        elif line.startswith(" " * 8):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _keys() -> str:
    meanings = {**attributes(Settings.__doc__ or ""), **attributes(Recipe.__doc__ or "")}
    meanings |= {
        "opset": "of the ONNX file, 18 to 23.",
        "storage": "of the ONNX file: `dense`, or `sparse` initializers.",
    }
    defaults = vars(Recipe())
    for key in defaults:
        assert key in meanings, f"the docstrings of Recipe and Settings do not say what {key!r} is"
    fields = [field for keys in TABLES.values() for field in keys.values()]
    assert sorted(fields) == sorted(defaults)
    rows = [
        (f"`{spelt(key)}`", _spelt(defaults[key]) if defaults[key] != {} else "", meanings[key].replace("``", "`"))
        for key in fields
    ]
    return _table(("key", "default", "meaning"), rows)


def _methods() -> str:
    rows = []
    for name, factory in {**METHODS, **WRAPPERS}.items():
        spelt = f"{name}(...)" if name in WRAPPERS else name
        shown = [
            f"`{key}` (required)" if value is inspect.Parameter.empty else f"`{key}` {_spelt(value)}".strip()
            for key, value in options(name).items()
        ]
        rows.append(
            (f"`{spelt}`", (inspect.getdoc(factory) or "").splitlines()[0].replace("``", "`"), ", ".join(shown))
        )
    return _table(("method", "what it does", "options, with defaults"), rows)


def _passes() -> str:
    rows = [
        (
            f"`{name}`",
            (inspect.getdoc(cls) or "").splitlines()[0].replace("``", "`"),
            ", ".join(f"`{o.name}` {_spelt(o.default)}".strip() for o in cls.options()),
            " or ".join(stage.value for stage in cls.requires),
            *(str(cls().preserves.get(phase, "no such phase")) for phase in ("train", "eval")),
        )
        for name, cls in PASSES.items()
    ]
    return _table(
        ("pass", "what it does", "options, with defaults", "needs stage", "preserves in train", "preserves in eval"),
        rows,
    )


def _heads() -> str:
    rows = [
        (
            f"`{head.spec}`",
            (inspect.getdoc(head) or "").splitlines()[0],
            ", ".join(f"`{task}`" for task, cls in TASKS.items() if name in fitting(cls)),
            ", ".join(f"`{output}`" for output in head.outputs),
        )
        for name, head in HEADS.items()
    ]
    return _table(("head", "what it does", "tasks", "outputs"), rows)


def _allocations() -> str:
    rows = [(f"`{name}`", (inspect.getdoc(function) or "").splitlines()[0]) for name, function in ALLOCATIONS.items()]
    return _table(("allocation", "what each weight keeps"), rows)


def _patterns() -> str:
    return _table(("pattern", "meaning"), [(f"`{spelling}`", meaning) for spelling, meaning in spellings().items()])
