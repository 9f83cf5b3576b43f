"""``report.html``: one file without links to anything, rebuilt at any time from what a run left in its folder."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from sparsify.errors import ReportError
from sparsify.ir.serialization import write_atomically
from sparsify.reports import plots, sections
from sparsify.reports.folder import RunFolder, read_folder
from sparsify.reports.headline import headline, parts, sentences, title

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; margin: 1rem 0; } .wide svg { display: block; min-width: 34rem; max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child, .text td, .text th { text-align: left; } th { font-weight: 600; } .text td { overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--soft); padding: .8rem; font-size: .8rem; }
summary { cursor: pointer; padding: .3rem 0; } li { margin: .3rem 0; }
"""


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from the run's own files.

    Args:
        folder: of a finished run: ``metrics.json``, ``history.jsonl``, ``recipe.toml``, ``program.sparsify``; with a baseline
            ``dense/history.jsonl``; ``latency.json`` where latency was measured.

    Raises:
        ReportError: If a file is missing or damaged.
    """
    content = read_folder(folder)
    try:
        page = _page(content)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ReportError(
            f"{folder / 'metrics.json'} holds values that do not fit together ({type(error).__name__}: {error}). Run again with "
            f"--overwrite."
        ) from error
    write_atomically(folder / "report.html", page.encode())
    return folder / "report.html"


def _page(run: RunFolder) -> str:
    report, latency, names = run.report, run.latency, parts(run.report)
    titles = {name: title(name, report) for name in names}
    table, columns, model = headline(report, latency), tuple(titles.values()), report["model"]
    diagrams = {name: report[name]["reliability"] for name in names}
    masked = any(layer["active"] is not None for layer in model["layers"])
    body = [
        f"<h1>{_e(titles['model'])} on {_e(report['data']['name'])}</h1>",
        _table(("", *table.columns), [(label, *cells) for label, cells in table.rows]),
        "<ul>" + "".join(f"<li>{_e(line)}</li>" for line in sentences(report, latency)) + "</ul>",
        "<h2>Training</h2>",
        _wide(plots.curves(run.histories, titles)),
        _table(("counted", *columns), sections.compute(report)),
        *_method(run),
        "<h2>Calibration</h2>",
        _wide(plots.reliability(diagrams, titles)),
        _table(("", *columns), sections.calibration(report)),
        _folded(
            "Bins of the diagrams", _table(("", "bin", "samples", "confidence", "accuracy"), sections.bins(report))
        ),
        "<p>ECE: 15 equal-width bins of the predicted class's confidence, closed on the right, weighted mean of the gaps. Adaptive: "
        "15 bins of equal mass. Class-wise: mean over classes. Measured on the test set; the head never saw it.</p>",
        "<h2>Accuracy by class</h2>",
        _classes(run),
        "<h2>Density by layer</h2>" if masked else "<h2>Layers</h2>",
        _wide(plots.densities(model["layers"])) if masked else "",
        _table(("weight", "shape", "active", "of", "density", "MACs", "left", "remark"), sections.layers(model)),
        "<h2>The exported file</h2>",
        _table(("agreement with the program", *columns), sections.parity(report)),
        "<h2>What was run</h2>",
        _table(("", ""), sections.facts(report, latency), kind="text"),
        _folded("Passes", _table(("pass", "changed", "left alone", "why"), sections.passes(report), kind="text")),
        _folded("Recipe, resolved", f"<pre>{_e(run.recipe)}</pre>"),
        _folded("The program", f"<pre>{_e(run.program)}</pre>"),
    ]
    text = "\n".join(section for section in body if section)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_e(titles["model"])}: sparsify report</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n<body>\n{text}\n'
        f"</body></html>\n"
    )


def _method(run: RunFolder) -> list[str]:
    """What the method measured of itself while it trained, where it did."""
    plot = plots.readings(run.histories["model"])
    return ["<h2>What the method did</h2>", _wide(plot)] if plot else []


def _classes(run: RunFolder) -> str:
    columns = sections.class_columns(run.report)
    everything = _table(columns, sections.classes(run.report))
    if run.report["data"]["classes"] <= sections.MOST_CLASSES:
        return everything
    worst = sections.classes(run.report, worst_first=True)[: sections.MOST_CLASSES]
    return _table(columns, worst) + _folded("All classes", everything)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    lines = ["<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    top = "".join(f'<th scope="col">{_e(cell)}</th>' for cell in head) if any(head) else ""
    thead = f"<thead><tr>{top}</tr></thead>" if top else ""
    return f'<div class="{f"wide {kind}".strip()}"><table>{thead}<tbody>{"".join(lines)}</tbody></table></div>'


def _wide(content: str) -> str:
    return f'<div class="wide">{content}</div>'


def _folded(name: str, content: str) -> str:
    return f"<details><summary>{_e(name)}</summary>{content}</details>"


def _e(text: str) -> str:
    return html.escape(text)
