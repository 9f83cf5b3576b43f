"""The folder of an evaluation: ``metrics.json`` and ``evaluation.html``, each written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sparsify.errors import EvaluationError
from sparsify.evaluation import shown
from sparsify.files import write_atomically, write_json
from sparsify.pages import markup, plots, shifts
from sparsify.pages.markup import Table
from sparsify.pages.sets import SIZE_COLUMNS
from sparsify.reading.shifts import told

ARTEFACTS = ("metrics.json", "evaluation.html")
MOST_CLASSES = 20
"""More classes than this are folded away."""


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder whose files would be lost.

    Raises:
        EvaluationError: If it is a file, holds the metrics of a run, or those of an evaluation and ``overwrite`` is not given.
    """
    if folder.exists() and not folder.is_dir():
        raise EvaluationError(f"{folder} is a file. Give a folder with --out.")
    held = [name for name in ARTEFACTS if (folder / name).exists()]
    if held and ARTEFACTS[1] not in held:
        raise EvaluationError(
            f"{folder} holds the metrics.json of something else, such as a run. Give another folder with --out."
        )
    if held and not overwrite:
        raise EvaluationError(
            f"{folder} already holds an evaluation. Give another folder, or replace it with --overwrite."
        )


def write_evaluation(report: Mapping[str, Any], folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the files of an evaluation; returns their paths.

    Args:
        report: what `sparsify.evaluation.evaluate` returned.
        folder: of the files; it is made if it does not exist.
        overwrite: replace an earlier evaluation.

    Raises:
        EvaluationError: As for `check_folder`.
    """
    check_folder(folder, overwrite=overwrite)
    page = page_of(report)
    write_json(folder / ARTEFACTS[0], report)
    write_atomically(folder / ARTEFACTS[1], page.encode())
    return [folder / name for name in ARTEFACTS]


def page_of(report: Mapping[str, Any]) -> str:
    """Return ``evaluation.html``: one page without links to anything."""
    titles = shown.titles(report)
    classes = bool(shown.whens(report["model"]))
    return markup.page(
        "evaluation.html",
        title=f"{' and '.join(titles.values())}: sparsify evaluation",
        verdicts=shown.verdicts(report),
        figures=Table(("", *titles.values()), shown.figures(report)),
        differences=Table(("", "difference", "95 % interval", "verdict"), shown.differences(report), kind="text")
        if "differences" in report
        else None,
        reliability=_reliability(report, titles) if classes else None,
        selective=_selective(report, titles) if classes else None,
        shift=_shift(report, titles),
        ood=_outside(report, titles),
        sets=Table(SIZE_COLUMNS, rows) if (rows := shown.sizes(report)) else None,
        classes=Table(shown.class_columns(report), shown.classes(report)) if classes else None,
        folded=classes and len(report["model"]["class_samples"]) > MOST_CLASSES,
        facts=Table(("", ""), shown.facts(report), kind="text"),
    )


def _reliability(report: Mapping[str, Any], titles: Mapping[str, str]) -> Markup:
    tables = {part: {when: report[part][when]["reliability"] for when in shown.whens(report[part])} for part in titles}
    return plots.reliability(tables, titles)


def _selective(report: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any]:
    drawn = {
        part: {
            "risk_coverage": {when: report[part][when]["risk_coverage"] for when in shown.whens(report[part])},
            **{f"aurc_{when}": report[part][when]["aurc"] for when in shown.whens(report[part])},
        }
        for part in titles
    }
    return {
        "plot": plots.risk_coverage(drawn, titles),
        "figures": Table(("", *titles.values()), shown.answered(report)),
    }


def _shift(report: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any] | None:
    if not (found := shown.shifted(report)):
        return None
    return shifts.section(found, titles, told())


def _outside(report: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any] | None:
    """Return plot and table of out-of-distribution inputs; None without any, or if no output scores them."""
    names = [name for name in report["data"]["ood"] if all(name in report[part]["ood"] for part in titles)]
    if not names:
        return None
    score = {part: shown.own_score(report[part], names[0]) for part in titles}
    drawn = {part: {"ood": {name: report[part]["ood"][name] for name in names}} for part in titles}
    return {"plot": plots.ood(drawn, titles, score), "figures": Table(shown.OOD_COLUMNS, shown.outside(report))}
