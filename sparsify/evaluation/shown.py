"""What was measured as rows of text, for the terminal and for ``evaluation.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsify.figures.ood_scores import SCORES
from sparsify.pages import shifts
from sparsify.pages.sets import ACCEPT, LABELS, SETS, figure_rows, size_rows

Report = Mapping[str, Any]
Rows = list[tuple[str, ...]]
FIGURES: Mapping[str, tuple[str, str]] = {
    "accuracy": ("accuracy", ".4f"),
    "nll": ("NLL", ".4f"),
    "brier": ("Brier score", ".4f"),
    "ece": ("ECE", ".4f"),
    "adaptive_ece": ("adaptive ECE", ".4f"),
    "classwise_ece": ("class-wise ECE", ".4f"),
    "mce": ("MCE", ".4f"),
    "debiased_l2": ("L2 calibration error, debiased", ".4f"),
    "signed_gap": ("confidence less accuracy", "+.4f"),
    "aurc": ("AURC", ".5f"),
    "excess_aurc": ("excess AURC", ".5f"),
    "correctness_auroc": ("AUROC of correctness", ".4f"),
}
"""Label and format of the figures of probabilities, in order."""
NUMBERS: Mapping[str, tuple[str, str]] = {"r2": ("R2", ".4f"), "rmse": ("RMSE", ".5g"), "mae": ("MAE", ".5g")}
OTHERS: Mapping[str, tuple[str, str]] = {
    "set_coverage": LABELS[SETS, "coverage"],
    "set_size": LABELS[SETS, "mean_size"],
    "accepted": LABELS[ACCEPT, "coverage"],
    "accepted_risk": LABELS[ACCEPT, "risk"],
    "interval_coverage": ("coverage of intervals", ".4f"),
    "interval_width": ("mean width of intervals", ".5g"),
}
SHORT = ("accuracy", "nll", "brier", "ece", "signed_gap", "aurc", "correctness_auroc")
"""The figures of probabilities that the terminal shows."""
WHENS = ("before", "after")


def parts(report: Report) -> list[str]:
    """Return ``model``, and ``against`` if there is a second file."""
    return [name for name in ("model", "against") if name in report]


def titles(report: Report) -> dict[str, str]:
    """Return what each file is called: its name, with its folder where the names are equal."""
    paths = {name: Path(report[name]["file"]) for name in parts(report)}
    alike = len({path.name for path in paths.values()}) < len(paths)
    return {name: str(path) if alike else path.name for name, path in paths.items()}


def whens(row: Report) -> list[str]:
    """Return ``before`` and ``after``, or the one of them that was measured."""
    return [when for when in WHENS if when in row]


def label(figure: str) -> str:
    """Return what a figure is called."""
    kind, _, rest = figure.partition(".")
    if kind == "auroc" and rest:
        name, _, score = rest.rpartition(".")
        return f"AUROC against {name}, {score}"
    return {**FIGURES, **NUMBERS, **OTHERS}[figure][0]


def style(figure: str) -> str:
    """Return the format of a figure."""
    return {**FIGURES, **NUMBERS, **OTHERS}.get(figure, ("", ".4f"))[1]


def number(value: float | None, form: str) -> str:
    """Format a number; nothing for None."""
    return "" if value is None else format(value, form)


def with_interval(row: Report, figure: str, value: float | None = None) -> str:
    """Return a figure with its 95 % interval, if it has one."""
    form, found = style(figure), row["values"].get(figure) if value is None else value
    ends = row["intervals"].get(figure)
    if found is None:
        return ""
    return number(found, form) + (f" ({number(ends[0], form)} to {number(ends[1], form)})" if ends else "")


def figures(report: Report, *, short: bool = False) -> Rows:
    """Return a row per figure, with a cell per file; intervals stand beside the figures of the probabilities that count."""
    found = [report[name] for name in parts(report)]
    return [*_tables(found, short=short), *_numbers(found), *_sets(found, short=short), *_outside(found, short=short)]


def _tables(found: Sequence[Report], *, short: bool) -> Rows:
    rows: Rows = []
    occurring = [when for when in WHENS if any(when in row for row in found)]
    for key, (name, form) in FIGURES.items():
        if short and key not in SHORT:
            continue
        for when in occurring:
            cells = []
            for row in found:
                last = whens(row)[-1:] == [when]
                value = row[when][key] if when in row else None
                cells.append(with_interval(row, key, value) if last and value is not None else number(value, form))
            rows.append((f"{name}, {when}" if len(occurring) > 1 else name, *cells))
    return rows


def _numbers(found: Sequence[Report]) -> Rows:
    if "numbers" not in found[0]:
        return []
    rows: Rows = [
        (name, *(with_interval(row, key, row["numbers"][key]) for row in found)) for key, (name, _) in NUMBERS.items()
    ]
    for key in ("interval_coverage", "interval_width"):
        if any(key in row["values"] for row in found):
            rows.append((OTHERS[key][0], *(with_interval(row, key) for row in found)))
    return rows


def _sets(found: Sequence[Report], *, short: bool) -> Rows:
    rows: Rows = []
    for key in ("set_coverage", "set_size", "accepted", "accepted_risk"):
        if any(key in row["values"] for row in found):
            rows.append((OTHERS[key][0], *(with_interval(row, key) for row in found)))
    further = [(SETS, key) for key in ("median_size", "singletons", "empty")]
    return rows + ([] if short else figure_rows(found, further))


def _outside(found: Sequence[Report], *, short: bool) -> Rows:
    rows: Rows = []
    for key in dict.fromkeys(key for row in found for key in row["values"] if key.startswith("auroc.")):
        name, _, score = key.removeprefix("auroc.").rpartition(".")
        if not short or score == own_score(found[0], name):
            rows.append((label(key), *(with_interval(row, key) for row in found)))
    return rows


def shifted(report: Report) -> dict[str, Report]:
    """Return the figures under shift of each file; empty if they were not measured."""
    return {part: report[part]["shift"] for part in parts(report) if "shift" in report[part]}


def own_score(row: Report, name: str) -> str:
    """Return the score that judges a file: its ``ood_score``, or else the highest softmax probability, or else another."""
    scores = row["ood"][name]["scores"]
    return next(score for score in ("ood_score", *SCORES, *scores) if score in scores)


def verdicts(report: Report) -> list[str]:
    """Return sentences on what was measured, and on what is better or worse with a second file."""
    data, model, names = report["data"], report["model"], titles(report)
    said = [f"{names['model']} on {data['samples']:,} {data['part']} samples of {data['name']}."]
    if not whens(model):
        said.append(f"R2 is {with_interval(model, 'r2', model['numbers']['r2'])}.")
    elif len(whens(model)) == 2:
        before, after = (model[when] for when in WHENS)
        said.append(
            f"Calibration changes ECE from {before['ece']:.4f} to {after['ece']:.4f}, NLL from {before['nll']:.4f} to {after['nll']:.4f}."
        )
    if "shift" in model:
        said.append(shifts.sentence(model["shift"]))
    if "differences" not in report:
        return said
    for kind in ("better", "worse"):
        listed = [_difference(row) for row in report["differences"] if row.get("verdict") == kind]
        told = "; ".join(listed) if listed else "nothing that has an interval"
        said.append(f"{kind.capitalize()} than {names['against']}: {told}.")
    for kind in ("higher", "lower"):
        if listed := [_difference(row) for row in report["differences"] if row.get("verdict") == kind]:
            said.append(f"{kind.capitalize()} than {names['against']}, where neither is better: {'; '.join(listed)}.")
    if unclear := [
        label(row["figure"]) for row in report["differences"] if row.get("verdict") == "no clear difference"
    ]:
        said.append(f"No clear difference to {names['against']}: {', '.join(unclear)}.")
    return said


def _difference(row: Report) -> str:
    low, high = (_signed(end, row) for end in row["interval"])
    return f"{label(row['figure'])} by {_signed(row['difference'], row)} ({low} to {high})"


def _signed(value: float, row: Report) -> str:
    return format(value, "+" + style(row["figure"]).lstrip("+"))


def differences(report: Report) -> Rows:
    """Return a row per figure of two files: the difference, its interval and the verdict."""
    return [
        (
            label(row["figure"]),
            *(("", "", f"not compared: {row['reason']}") if "reason" in row else (
                _signed(row["difference"], row),
                f"{_signed(row['interval'][0], row)} to {_signed(row['interval'][1], row)}",
                row["verdict"],
            )),
        )
        for row in report["differences"]
    ]  # fmt: skip


def answered(report: Report) -> Rows:
    """Return how many samples can be answered at each measured risk."""
    rows: Rows = []
    found = [report[name] for name in parts(report)]
    for when in (when for when in WHENS if any(when in row for row in found)):
        for place, first in enumerate(next(row for row in found if when in row)[when]["coverage_at_risk"]):
            cells = [row[when]["coverage_at_risk"][place] if when in row else None for row in found]
            shown = ("" if cell is None else f"{100 * cell['coverage']:.1f} % ({cell['samples']:,})" for cell in cells)
            rows.append((f"answered with at most {100 * first['at_most']:g} % wrong, {when}", *shown))
    return rows


OOD_COLUMNS = (
    "inputs", "file", "score", "AUROC", "AUPR, in", "AUPR, out", "FPR at 95 % TPR", "the same, out as positive",
)  # fmt: skip


def outside(report: Report) -> Rows:
    """Return every score of every file against each set of out-of-distribution inputs."""
    keys, rows = ("aupr_in", "aupr_out", "fpr_at_95_tpr", "fpr_at_95_tpr_outside"), list[tuple[str, ...]]()
    for name in report["data"]["ood"]:
        for part, title in titles(report).items():
            for score, row in report[part]["ood"].get(name, {"scores": {}})["scores"].items():
                area = with_interval(report[part], f"auroc.{name}.{score}", row["auroc"])
                rows.append((name, title, score, area, *(f"{row[key]:.4f}" for key in keys)))
    return rows


def class_columns(report: Report) -> tuple[str, ...]:
    """Return the titles of `classes`."""
    names, sets = (
        titles(report),
        [f"sets of {name}" for part, name in titles(report).items() if "prediction_set" in report[part]],
    )
    changes = ("difference", "95 % interval", "verdict") if "changes" in report else ()
    return ("class", "samples", *(f"recall, {name}" for name in names.values()), *sets, *changes)


def classes(report: Report) -> Rows:
    """Return the recall of each class by the probabilities that count, the coverage of its prediction sets, and what changed."""
    rows: Rows = []
    names = report["data"]["class_names"]
    found = [report[name] for name in parts(report)]
    for k, samples in enumerate(found[0]["class_samples"]):
        cells = [number(row[whens(row)[-1]]["class_accuracy"][k], ".4f") for row in found]
        cells += [number(row["prediction_set"]["class_coverage"][k], ".4f") for row in found if "prediction_set" in row]
        if "changes" in report:
            change = report["changes"]["classes"][k]
            cells += (
                ["", "", ""]
                if change is None
                else [f"{change['change']:+.4f}", "{:+.4f} to {:+.4f}".format(*change["interval"]), change["verdict"]]
            )
        rows.append((f"{k} {names[k]}" if k < len(names) and names[k] != str(k) else str(k), f"{samples:,}", *cells))
    return rows


def sizes(report: Report) -> Rows:
    """Return the coverage of prediction sets by their size."""
    return size_rows({title: report[part] for part, title in titles(report).items()})


def facts(report: Report) -> Rows:
    """Return what identifies files and data."""
    rows: Rows = []
    for part, name in titles(report).items():
        row = report[part]
        rows += [(f"{name}, bytes", f"{row['bytes']:,}"), (f"{name}, SHA-256", row["sha256"])]
        rows += [(f"{name}, output for {role.replace('_', ' ')}", output) for role, output in row["outputs"].items()]
        rows += [(f"{name}, {key.replace('_', ' ')}", value) for key, value in row["metadata"].items()]
    data = report["data"]
    rows += [
        ("data", data["name"]),
        ("part", data["part"]),
        ("samples", f"{data['samples']:,}"),
        ("data, SHA-256", data["fingerprint"]),
    ]
    rows += [
        (f"out-of-distribution inputs, {name}", f"{found['samples']:,} of {found['data']}")
        for name, found in data["ood"].items()
    ]
    return rows + list(report["versions"].items())
