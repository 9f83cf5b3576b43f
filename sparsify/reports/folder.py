"""Reads the files of a run's folder; errors name every file that is missing, damaged or of another kind."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsify.errors import LoadError, ReportError
from sparsify.ir import Program
from sparsify.reports.headline import parts
from sparsify.reports.schema import Answers, Epoch, LatencyFile, Metrics, check
from sparsify.untrusted import parse_json, read_text

Report = Mapping[str, Any]
History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RunFolder:
    """The content of a run's folder.

    Attributes:
        report: ``metrics.json``.
        latency: ``latency.json``, or None where latency was not measured.
        answers: ``answers.json``, or None of a run of an earlier version, or of a task without one answer per sample.
        histories: rows of ``history.jsonl`` by part (``model``, and ``dense`` where there is a baseline).
        recipe: text of ``recipe.toml``.
        program: text of the program in ``program.sparsify``.
    """

    report: Report
    latency: Report | None
    answers: Report | None
    histories: Mapping[str, History]
    recipe: str
    program: str


def read_folder(folder: Path) -> RunFolder:
    """Read and check all of a finished run.

    Raises:
        ReportError: If a file is missing, damaged, of another version, or ``recipe.toml`` is not the recipe of ``metrics.json``.
    """
    if not folder.is_dir():
        raise ReportError(f"there is no folder {folder}. Give the --out of a finished run.")
    report = _json(folder / "metrics.json")
    check(Metrics, report, folder / "metrics.json")
    latency = _json(folder / "latency.json") if (folder / "latency.json").exists() else None
    if latency is not None:
        check(LatencyFile, latency, folder / "latency.json")
        missing = set(parts(report)) - {row["name"] for row in latency["timings"]}
        if missing:
            raise ReportError(
                f"{folder / 'latency.json'} has no timing of {sorted(missing)[0]!r}, which metrics.json holds: they are of two runs. "
                f"Delete it, or run again with --overwrite."
            )
    recipe = _text(folder / "recipe.toml")
    if hashlib.sha256(recipe.encode()).hexdigest() != report["recipe_hash"]:
        raise ReportError(
            f"{folder / 'recipe.toml'} is not the recipe that metrics.json was made with (its hash differs). Put the run's own back, "
            f"or run again with --overwrite."
        )
    histories = {
        name: _history((folder if name == "model" else folder / name) / "history.jsonl") for name in parts(report)
    }
    return RunFolder(report, latency, read_answers(folder), histories, recipe, _program(folder / "program.sparsify"))


def read_measured(folder: Path) -> tuple[Report, History]:
    """``metrics.json`` and the model's ``history.jsonl`` of a finished run, checked; nothing else of it is read.

    Raises:
        ReportError: If either is missing, damaged or of another version.
    """
    report = _json(folder / "metrics.json")
    check(Metrics, report, folder / "metrics.json")
    return report, _history(folder / "history.jsonl")


def read_answers(folder: Path) -> Report | None:
    """``answers.json`` of a finished run, checked; None if it has none.

    Raises:
        ReportError: If it is damaged.
    """
    path = folder / "answers.json"
    if not path.exists():
        return None
    found = _json(path)
    check(Answers, found, path)
    return found


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise ReportError(
            f"a report needs {path}, which cannot be read ({error.strerror}). Finish the run with --resume."
        ) from error
    except ValueError as error:
        reason = "it is not text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ReportError(
            f"a report needs {path}, which cannot be read ({reason}). Run again with --overwrite."
        ) from error


def _parsed(path: Path, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ReportError(f"{path} is damaged: {error}. Run again with --overwrite.") from error


def _json(path: Path) -> dict[str, Any]:
    return _parsed(path, _text(path))


def _history(path: Path) -> list[dict[str, Any]]:
    rows = [_parsed(path, line) for line in _text(path).splitlines()]
    for row in rows:
        check(Epoch, row, path)
        row["val_loss"] = _number(row["val_loss"])
        row["readings"] = {name: _number(value) for name, value in row.get("readings", {}).items()}
    return rows


def _number(value: float | None) -> float:
    """Return a number of a row; NaN for what was not finite, which JSON cannot hold."""
    return math.nan if value is None else value


def _program(path: Path) -> str:
    try:
        return Program.load(path).text()
    except LoadError as error:
        raise ReportError(f"a report needs {path}: {error} Finish the run with --resume.") from error
