"""``report.html``: one file without links to anything, rebuilt at any time from what a run left in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsify.errors import ReportError
from sparsify.files import write_atomically
from sparsify.reports import integers, markup, plots, sections
from sparsify.reports.folder import RunFolder, read_folder
from sparsify.reports.headline import headline, headline_figure, own_score, parts, sentences, sets, title
from sparsify.reports.markup import escaped as _e
from sparsify.reports.markup import folded as _folded
from sparsify.reports.markup import table as _table
from sparsify.reports.markup import wide as _wide
from sparsify.reports.usage import usage
from sparsify.reports.verdict import verdict


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
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
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
    masked = any(layer["active"] is not None for layer in model["layers"])
    body = [
        f"<h1>{_e(titles['model'])} on {_e(report['data']['name'])}</h1>",
        *(f'<p class="verdict">{_e(line)}</p>' for line in verdict(report, latency)),
        _table(("", *table.columns), [(label, *cells) for label, cells in table.rows]),
        "<ul>" + "".join(f"<li>{_e(line)}</li>" for line in sentences(report, latency)) + "</ul>",
        "<h2>Training</h2>",
        _wide(plots.curves(run.histories, titles, headline_figure(report))),
        _table(("counted", *columns), sections.compute(report)),
        *_schedule(report, columns),
        *_method(run),
        *(_of_classes(run, titles) if "reliability" in model else _of_task(run, titles)),
        "<h2>Density by layer</h2>" if masked else "<h2>Layers</h2>",
        _wide(plots.densities(model["layers"])) if masked else "",
        _table(
            ("weight", "shape", "active", "of", "density", "coverage", "MACs", "left", "remark"), sections.layers(model)
        ),
        *_masks(run),
        "<h2>The exported file</h2>",
        _table(("agreement with the program", *columns), sections.parity(report)),
        *_unfinished(report),
        *_use(run),
        _int8(run),
        "<h2>What was run</h2>",
        _table(("", ""), sections.facts(report, latency), kind="text"),
        _folded("Passes", _table(("pass", "changed", "left alone", "why"), sections.passes(report), kind="text")),
        _folded("Recipe, resolved", f"<pre>{_e(run.recipe)}</pre>"),
        _folded("The program", f"<pre>{_e(run.program)}</pre>"),
    ]
    return markup.page(f"{titles['model']}: sparsify report", body)


def _of_classes(run: RunFolder, titles: Mapping[str, str]) -> list[str]:
    """What is measured of class scores: calibration, the unknown, and each class."""
    report = run.report
    return [
        "<h2>Calibration</h2>",
        _wide(plots.reliability({name: report[name]["reliability"] for name in titles}, titles)),
        _table(("", *titles.values()), sections.calibration(report)),
        _folded(
            "Bins of the diagrams", _table(("", "bin", "samples", "confidence", "accuracy"), sections.bins(report))
        ),
        "<p>ECE: 15 equal-width bins of the predicted class's confidence, closed on the right, weighted mean of the gaps. Adaptive: "
        "15 bins of equal mass. Class-wise: mean over classes. Measured on the test set; the head never saw it.</p>",
        *_out_of_distribution(run, titles),
        "<h2>Accuracy by class</h2>",
        _classes(run),
    ]


def _of_task(run: RunFolder, titles: Mapping[str, str]) -> list[str]:
    """How the head of another task was fitted, where it has one."""
    if run.report["model"]["calibration"] is None:
        return []
    return ["<h2>Calibration</h2>", _table(("", *titles.values()), sections.task_calibration(run.report))]


def _masks(run: RunFolder) -> Iterable[str]:
    """How the masks moved, where the run has followed them."""
    history, share = run.histories["model"], run.report["model"]["coverage"]
    if share is None or not any(row.get("coverage") for row in history):
        return ()
    text = (
        f"Coverage is the share of a weight's positions that were ever active: {share:.4f} of all maskable positions at the end. "
        f"Turnover is how many positions topology updates activated since the row before, over those active."
    )
    return ("<h2>Masks over time</h2>", _wide(plots.masks(history)), f"<p>{_e(text)}</p>")


def _out_of_distribution(run: RunFolder, titles: Mapping[str, str]) -> list[str]:
    found: list[str] = []
    if sets(run.report["model"]):
        score = {name: own_score(run.report[name]) for name in titles}
        found += [
            "<h2>Out of distribution</h2>",
            _wide(plots.ood(run.report, titles, score)),
            _table(sections.OOD_COLUMNS, sections.ood(run.report)),
            "<p>Test inputs against inputs of no class. Scores are of the logits as trained, not calibrated, and of the known classes; "
            "higher is in-distribution. AUPR depends on how many there are of each. FPR at 95 % TPR: share of the outsiders accepted "
            "where 95 % of the test inputs are; in the last column, share of the test inputs refused where 95 % of the outsiders are.</p>",
        ]
    rows = run.histories["model"]
    if rows and "val_unknown" in rows[-1]:
        found += ["<h2>The unknown class</h2>", _wide(plots.unknown(rows))]
    return found


def _unfinished(report: Mapping[str, Any]) -> Iterable[str]:
    """What could not be made after training."""
    for row in report.get("missing") or ():
        yield f"<p>{_e(row['file'])} is missing: {_e(row['reason'])} {_e(row['advice'])}</p>"


def _use(run: RunFolder) -> Iterable[str]:
    """The lines that run the file."""
    for what, lines in usage(run.report).items():
        yield f"<p>To run it on {_e(what)}:</p>"
        yield f'<pre class="usage">{_e(lines)}</pre>'


def _int8(run: RunFolder) -> str:
    report, names = run.report, integers.in_int8(run.report)
    if not names:
        return ""
    columns = [f"{title(name, report)}, {precision}" for name in names for precision in ("fp32", "int8")]
    body = "<h2>In int8</h2>" + _table(("test samples", *columns), integers.int8_rows(report))
    if "model" in names:
        layers = integers.int8_layers(report, run.latency)
        body += _folded("Layers", _table(("weight", "form in the file", "each form, alone"), layers, kind="text"))
        body += _folded("Files that were timed", _table(("form", "ms a call"), integers.int8_trials(run.latency)))
    return body


def _schedule(report: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    rows = sections.schedule(report)
    return [_table(("schedule, in steps", *columns), rows)] if rows else []


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
