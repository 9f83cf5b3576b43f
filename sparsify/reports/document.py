"""``report.html``: one file without links to anything, rebuilt at any time from what a run left in its folder."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsify.errors import ReportError
from sparsify.ir import Program
from sparsify.ir.serialization import write_atomically
from sparsify.reports import plots
from sparsify.reports.headline import headline, parts, sentences, title

Report = Mapping[str, Any]
STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
pre { overflow-x: auto; background: var(--soft); padding: .8rem; font-size: .8rem; } summary { cursor: pointer; }
"""


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from the run's own files.

    Args:
        folder: of a finished run: ``metrics.json``, ``history.jsonl``, ``recipe.toml``, ``program.sparsify``; with a baseline
            ``dense/history.jsonl``; ``latency.json`` where latency was measured.

    Raises:
        ReportError: If a file is missing or damaged.
    """
    report = _json(folder / "metrics.json")
    latency = _json(folder / "latency.json") if (folder / "latency.json").exists() else None
    try:
        histories = {name: _history(_folder(folder, name) / "history.jsonl") for name in parts(report)}
        page = _page(report, latency, histories, _text(folder / "recipe.toml"), _program(folder / "program.sparsify"))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ReportError(
            f"{folder / 'metrics.json'} lacks what a report needs ({type(error).__name__}: {error}). It is of another version, or "
            f"damaged; run again with --overwrite."
        ) from error
    write_atomically(folder / "report.html", page.encode())
    return folder / "report.html"


def _page(report: Report, latency: Report | None, histories: Mapping[str, Any], recipe: str, program: str) -> str:
    names, model = parts(report), report["model"]
    titles = {name: title(name, report) for name in names}
    table = headline(report, latency)
    verdict = latency["verdict"] if latency else None
    bins = {name: report[name]["reliability"] for name in names}
    sections = [
        f"<h1>{_e(titles['model'])} on {_e(report['data']['name'])}</h1>",
        _table(("", *table.columns), [(label, *cells) for label, cells in table.rows]),
        "<ul>" + "".join(f"<li>{_e(line)}</li>" for line in sentences(report, latency, verdict)) + "</ul>",
        "<h2>Training</h2>",
        plots.curves(histories, titles),
        "<h2>Calibration</h2>",
        plots.reliability(bins, titles),
        _table(("calibration", *titles.values()), _calibration(report, names)),
        "<h2>Accuracy by class</h2>",
        _table(("class", *titles.values(), *(["difference"] if "dense" in names else [])), _classes(report, names)),
        "<h2>Density by layer</h2>",
        plots.densities(model["layers"]) if model["maskable"] and any(x["active"] for x in model["layers"]) else "",
        _table(("weight", "shape", "active", "of", "MACs", ""), _layers(model["layers"])),
        "<h2>What was run</h2>",
        _table(("", ""), _facts(report, latency)),
        f"<details><summary>Recipe, resolved</summary><pre>{_e(recipe)}</pre></details>",
        f"<details><summary>The program</summary><pre>{_e(program)}</pre></details>",
    ]
    body = "\n".join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_e(titles["model"])}: sparsify report</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n<body>\n{body}\n'
        f"</body></html>\n"
    )


def _calibration(report: Report, names: Sequence[str]) -> list[tuple[str, ...]]:
    rows = [("kind", *(report[n]["calibration"]["kind"] for n in names))]
    rows.append(("temperature", *(_number(report[n]["calibration"]["temperature"]) for n in names)))
    for label, key in (("adaptive ECE, after", "adaptive_ece"), ("class-wise ECE, after", "classwise_ece")):
        rows.append((label, *(f"{report[n][key]:.4f}" for n in names)))
    for when in ("before", "after"):
        key = f"ece_{when}"
        rows.append((f"held-out ECE, {when}", *(f"{report[n]['calibration'][key]:.4f}" for n in names)))
    return rows


def _classes(report: Report, names: Sequence[str]) -> list[tuple[str, ...]]:
    columns = [report[name]["class_accuracy"] for name in names]
    rows = []
    for index, values in enumerate(zip(*columns, strict=True)):
        cells = tuple(_number(value) for value in values)
        both = len(values) == 2 and None not in values
        rows.append(
            (str(index), *cells, *([f"{values[1] - values[0]:+.4f}" if both else ""] if len(values) == 2 else []))
        )
    return rows


def _layers(layers: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for layer in layers:
        shape, active = " x ".join(map(str, layer["shape"])), layer["active"]
        count = "" if active is None else f"{active:,}"
        rows.append((layer["name"], shape, count, f"{layer['maskable']:,}", f"{layer['macs']:,}", layer["skip"] or ""))
    return rows


def _facts(report: Report, latency: Report | None) -> list[tuple[str, str]]:
    facts = [("seed", str(report["seed"])), ("recipe", report["recipe_hash"][:16])]
    facts += [(name, version) for name, version in report["versions"].items()]
    for name in parts(report):
        counts = ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in report[name]["counts"].items())
        facts.append((f"compute, {title(name, report)}", counts))
    facts += [(f"samples, {part}", f"{count:,}") for part, count in report["data"]["samples"].items()]
    if latency:
        facts += [(f"machine, {key}", str(value)) for key, value in latency["machine"].items()]
        facts.append(("latency rounds", str(latency["rounds"])))
    return facts


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    top = "<tr>" + "".join(f"<th>{_e(cell)}</th>" for cell in head) + "</tr>"
    return f'<div class="wide"><table><thead>{top}</thead><tbody>{"".join(lines)}</tbody></table></div>'


def _e(text: str) -> str:
    return html.escape(text)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _folder(folder: Path, part: str) -> Path:
    return folder if part == "model" else folder / part


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(
            f"a report needs {path}, which cannot be read ({error}). Finish the run with --resume."
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path} is damaged: {error}. Run again with --overwrite.") from error
    if not isinstance(value, dict) or (path.name == "metrics.json" and "model" not in value):
        raise ReportError(f"{path} is not what a run leaves. Give the folder of a run of this version.")
    return value


def _history(path: Path) -> list[dict[str, float]]:
    try:
        return [json.loads(line) for line in _text(path).splitlines()]
    except json.JSONDecodeError as error:
        raise ReportError(f"{path} is damaged: {error}. Run again with --overwrite.") from error


def _program(path: Path) -> str:
    if not path.exists():
        raise ReportError(f"a report needs {path}, which is missing. Finish the run with --resume.")
    return Program.load(path).text()
