"""``report.html``: one file without links to anything, rebuilt at any time from what a run left in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsify.errors import ReportError
from sparsify.files import write_atomically
from sparsify.pages import markup, plots, shifts
from sparsify.pages.markup import Table
from sparsify.pages.sets import SIZE_COLUMNS, size_rows
from sparsify.reading.shifts import told
from sparsify.reports import integers, savings, sections, spikes_form
from sparsify.reports import sets as answered
from sparsify.reports.damage import damage_section
from sparsify.reports.folder import RunFolder, read_folder
from sparsify.reports.headline import headline, headline_figure, own_score, parts, sentences, sets, title
from sparsify.reports.selective import is_measured
from sparsify.reports.usage import usage
from sparsify.reports.verdict import verdict

LAYERS = ("weight", "shape", "active", "of", "density", "coverage", "MACs", "left", "in training", "remark")
"""Columns of the table of layers."""


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from the run's own files.

    Args:
        folder: of a finished run: ``metrics.json``, ``history.jsonl``, ``recipe.toml``, ``program.sparsify``; with a baseline
            ``dense/history.jsonl``; ``latency.json`` where latency was measured, and ``answers.json``.

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
    report, latency, history = run.report, run.latency, run.histories["model"]
    titles = {name: title(name, report) for name in parts(report)}
    table, columns, model = headline(report, latency), tuple(titles.values()), report["model"]
    masked = any(layer["active"] is not None for layer in model["layers"])
    moved = model["coverage"] is not None and any(row.get("coverage") for row in history)
    return markup.page(
        "report.html",
        title=f"{titles['model']}: sparsify report",
        model=titles["model"],
        data=report["data"]["name"],
        verdict=verdict(report, latency),
        headline=Table(("", *table.columns), [(label, *cells) for label, cells in table.rows]),
        sentences=sentences(report, latency),
        curves=plots.curves(run.histories, titles, headline_figure(report)),
        compute=Table(("counted", *columns), sections.compute(report)),
        schedule=Table(("schedule, in steps", *columns), sections.schedule(report)),
        savings=_savings(run),
        readings=plots.readings(history),
        spikes=_spikes(run, columns),
        classes=_classes(run, titles) if "reliability" in model else None,
        calibration=_calibration(run, columns),
        damage=damage_section(report, (run.answers or {}).get("pictures") or {}),
        densities=plots.densities(model["layers"]) if masked else None,
        layers=Table(LAYERS, sections.layers(model)),
        masks=plots.masks(history) if moved else None,
        coverage=f"{model['coverage']:.4f}" if moved else None,
        parity=Table(("agreement with the program", *columns), sections.parity(report)),
        missing=report.get("missing") or (),
        usage=usage(report),
        int8=_int8(run),
        facts=Table(("", ""), sections.facts(report, latency), kind="text"),
        passes=Table(("pass", "changed", "left alone", "why"), sections.passes(report), kind="text"),
        recipe=run.recipe,
        program=run.program,
    )


def _savings(run: RunFolder) -> dict[str, Any] | None:
    """Return what training saved, in sentences and tables; None without masks."""
    if not savings.is_shown(run.report):
        return None
    return {
        "sentences": savings.savings_sentences(run.report, run.latency),
        "macs": Table(("MACs per sample of a step", "dense", "this run, mean"), savings.macs_rows(run.report)),
        "bytes": Table(("bytes at the end of a step", "dense", "most", "last"), savings.bytes_rows(run.report)),
    }


def _spikes(run: RunFolder, columns: Sequence[str]) -> dict[str, Table] | None:
    """Return the tables of a spiking model; None for another."""
    layers = spikes_form.layer_rows(run.report)
    if not layers:
        return None
    counted = [name for name in parts(run.report) if run.report[name].get("spikes")]
    titles = tuple(title for name, title in zip(parts(run.report), columns, strict=True) if name in counted)
    return {
        "work": Table(("spikes", *titles), spikes_form.spikes_rows(run.report, counted)),
        "layers": Table(spikes_form.LAYER_COLUMNS, layers),
    }


def _calibration(run: RunFolder, columns: Sequence[str]) -> Table | None:
    """Describe how the head of a task other than classification was fitted, if it has one."""
    if "reliability" in run.report["model"] or run.report["model"]["calibration"] is None:
        return None
    return Table(("", *columns), sections.task_calibration(run.report))


def _classes(run: RunFolder, titles: Mapping[str, str]) -> dict[str, Any]:
    """Return what is measured of class scores: calibration, the unknown, and each class."""
    report, rows = run.report, run.histories["model"]
    columns, many = sections.class_columns(report), report["data"]["classes"] > sections.MOST_CLASSES
    every = Table(columns, sections.classes(report))
    worst = sections.classes(report, worst_first=True)[: sections.MOST_CLASSES] if many else ()
    return {
        "reliability": plots.reliability({name: report[name]["reliability"] for name in titles}, titles),
        "calibration": Table(("", *titles.values()), sections.calibration(report)),
        "bins": Table(("", "bin", "samples", "confidence", "accuracy"), sections.bins(report)),
        "selective": _selective(report, titles),
        "sets": _sets(report, titles),
        "shift": _shift(report, titles),
        "ood": _out_of_distribution(report, titles),
        "unknown": plots.unknown(rows) if rows and "val_unknown" in rows[-1] else None,
        "shown": Table(columns, worst) if many else every,
        "every": every if many else None,
    }


def _selective(report: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any] | None:
    if not is_measured(report):
        return None
    return {
        "plot": plots.risk_coverage(report, titles),
        "figures": Table(("", *titles.values()), sections.selective(report)),
    }


def _sets(report: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any] | None:
    """Return tables of prediction sets and of accepted answers; None if the models have no such outputs."""
    if not answered.is_measured(report):
        return None
    sizes, rows = size_rows({title: report[name] for name, title in titles.items()}), answered.by_class(report, titles)
    return {
        "figures": Table(("", *titles.values()), answered.figures([report[name] for name in titles])),
        "sizes": Table(SIZE_COLUMNS, sizes) if sizes else None,
        "classes": Table(("coverage by class", *titles.values()), rows) if rows else None,
        "folded": len(rows) > sections.MOST_CLASSES,
    }


def _shift(report: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any] | None:
    found = {name: report[name]["shift"] for name in titles if report[name].get("shift")}
    return shifts.section(found, titles, told()) if found else None


def _out_of_distribution(report: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any] | None:
    if not sets(report["model"]):
        return None
    score = {name: own_score(report[name]) for name in titles}
    return {
        "plot": plots.ood(report, titles, score),
        "figures": Table(sections.OOD_COLUMNS, sections.ood(report)),
    }


def _int8(run: RunFolder) -> dict[str, Table | None] | None:
    report, names = run.report, integers.in_int8(run.report)
    if not names:
        return None
    columns = [
        f"{title(name, report)}, {what}"
        for name in names
        for what in ("fp32", integers.int8_title(report[name]["int8"]))
    ]
    found: dict[str, Table | None] = {
        "figures": Table(("test samples", *columns), integers.int8_rows(report)), "layers": None, "trials": None,
    }  # fmt: skip
    if "model" in names:
        layers = integers.int8_layers(report, run.latency)
        found["layers"] = Table(("weight", "form in the file", "each form, alone"), layers, kind="text")
        found["trials"] = Table(("form", "ms a call"), integers.int8_trials(run.latency))
    return found
