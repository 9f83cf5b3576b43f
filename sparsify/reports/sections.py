"""The tables of ``report.html``: from what a run left to rows of text. No markup here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsify.reports.headline import parts, sets, title
from sparsify.reports.individual_form import individual_rows

Report = Mapping[str, Any]
Rows = list[tuple[str, ...]]
MOST_CLASSES = 20
"""More classes than this are shown by what they lost, the worst first, and all of them folded away."""


def calibration(report: Report) -> Rows:
    """How each head was fitted, and what it did to the samples it was fitted on and to the test samples."""
    names = parts(report)
    fitted = [report[name]["calibration"] for name in names]
    rows: Rows = [
        ("kind", *(entry["kind"] for entry in fitted)),
        ("temperature", *(_number(entry["temperature"]) for entry in fitted)),
        ("held-out samples", *(f"{entry['samples']:,}" for entry in fitted)),
    ]
    if any(entry.get("note") for entry in fitted):
        rows.append(("note", *(entry.get("note") or "" for entry in fitted)))
    for label, key in (("NLL", "nll"), ("ECE", "ece")):
        for when in ("before", "after"):
            rows.append((f"held-out {label}, {when}", *(_number(entry[f"{key}_{when}"]) for entry in fitted)))
    rows += _found(fitted)
    rows += _further_heads(fitted)
    rows.append(("test accuracy, after", *(f"{report[name]['accuracy_after']:.4f}" for name in names)))
    for label, key in (
        ("Brier score", "brier"), ("MCE", "mce"), ("L2 calibration error, debiased", "debiased_l2"),
        ("confidence less accuracy", "signed_gap"),
    ):  # fmt: skip
        style = "+.4f" if key == "signed_gap" else ".4f"
        rows += _before_and_after(report, f"test {label}", key, style)
    return [*rows, *individual_rows(report)]


def _before_and_after(report: Report, label: str, key: str, style: str) -> Rows:
    """Return a row of a figure before calibration and one after it; none if a run of an earlier version did not measure it."""
    found = [report[name] for name in parts(report)]
    if any(f"{key}_after" not in part for part in found):
        return []
    return [
        (f"{label}, {when}", *(_number(part[f"{key}_{when}"], style) for part in found)) for when in ("before", "after")
    ]


def selective(report: Report) -> Rows:
    """How far confidence tells right answers from wrong ones, and how many samples can be answered at a risk."""
    names = parts(report)
    rows: Rows = []
    for label, key, style in (
        ("AURC", "aurc", ".5f"), ("excess AURC", "excess_aurc", ".5f"), ("AUROC of correctness", "correctness_auroc", ".4f"),
    ):  # fmt: skip
        rows += _before_and_after(report, label, key, style)
    for when in ("before", "after"):
        found = [report[name]["coverage_at_risk"][when] for name in names]
        for row in zip(*found, strict=True):
            cells = (f"{100 * cell['coverage']:.1f} % ({cell['samples']:,})" for cell in row)
            rows.append((f"answered with at most {100 * row[0]['at_most']:g} % wrong, {when}", *cells))
    choices = [report[name].get("chosen_confidence") for name in names]
    if all(choices):
        labels = ("probability" if one["p"] is None else f"logit by its {one['p']}-norm" for one in choices)
        rows += [
            ("confidence that held-out samples chose", *labels),
            ("AURC by it", *(f"{one['aurc']:.5f}" for one in choices)),
        ]
    return rows


def _found(fitted: Sequence[Mapping[str, Any]]) -> Rows:
    """Return what the fits of the heads that calibrate found besides their usual figures; no row if they found nothing."""
    cells = [
        ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in entry.get("figures", {}).items())
        for entry in fitted
    ]
    return [("found by the fit", *cells)] if any(cells) else []


def _further_heads(fitted: Sequence[Mapping[str, Any]]) -> Rows:
    """Return what the fit of each head that does not calibrate found, in order."""
    rows: Rows = []
    for spec in dict.fromkeys(head["head"] for entry in fitted for head in entry.get("heads", [])):
        cells = list[str]()
        for entry in fitted:
            mine = next((head for head in entry.get("heads", []) if head["head"] == spec), None)
            told = (
                [f"{key.replace('_', ' ')} {_number(value)}" for key, value in mine["figures"].items()] if mine else []
            )
            cells.append("; ".join([", ".join(told), *([mine["note"]] if mine and mine["note"] else [])]).strip("; "))
        rows.append((f"{spec}, on the samples of its fit", *cells))
    return rows


def task_calibration(report: Report) -> Rows:
    """How each head of a task other than classification was fitted, and what it did to the samples it was fitted on."""
    fitted = [report[name]["calibration"] for name in parts(report)]
    rows: Rows = [
        ("kind", *(entry["kind"] for entry in fitted)),
        ("held-out samples", *(f"{entry['samples']:,}" for entry in fitted)),
    ]
    for label, key in (
        ("temperature", "temperature"), ("level", "level"), ("held-out NLL, before", "nll_before"), ("held-out NLL, after", "nll_after"),
        ("held-out ECE, before", "ece_before"), ("held-out ECE, after", "ece_after"),
    ):  # fmt: skip
        if any(entry.get(key) is not None for entry in fitted):
            rows.append((label, *(_number(entry.get(key)) for entry in fitted)))
    rows += _found(fitted)
    if any(entry.get("note") for entry in fitted):
        rows.append(("note", *(entry.get("note") or "" for entry in fitted)))
    return rows


def bins(report: Report) -> Rows:
    """Return every bin that holds samples: model, when, the bin's edges, count, confidence, accuracy."""
    rows: Rows = []
    for name in parts(report):
        for when in ("before", "after"):
            table = report[name]["reliability"][when]
            for index, row in enumerate(table):
                if row["count"]:
                    edges = f"{index / len(table):.3f} to {(index + 1) / len(table):.3f}"
                    figures = (f"{row['count']:,}", f"{row['confidence']:.4f}", f"{row['accuracy']:.4f}")
                    rows.append((f"{title(name, report)}, {when}", edges, *figures))
    return rows


OOD_COLUMNS = (
    "inputs",
    "model",
    "score",
    "AUROC",
    "AUPR, in",
    "AUPR, out",
    "FPR at 95 % TPR",
    "the same, out as positive",
)


def ood(report: Report) -> Rows:
    """How well every score of every model tells test inputs from each set of out-of-distribution inputs."""
    rows: Rows = []
    for name in sets(report["model"]):
        for part in parts(report):
            for score, row in report[part]["ood"][name]["scores"].items():
                keys = ("auroc", "aupr_in", "aupr_out", "fpr_at_95_tpr", "fpr_at_95_tpr_outside")
                rows.append((name, title(part, report), score, *(f"{row[key]:.4f}" for key in keys)))
    return rows


def class_columns(report: Report) -> tuple[str, ...]:
    """Titles of `classes`."""
    names = [title(name, report) for name in parts(report)]
    return (
        "class",
        *(["test samples"] if _flips(report) else []),
        *names,
        *(["difference"] if _paired(report) else []),
    )


def classes(report: Report, *, worst_first: bool = False) -> Rows:
    """Accuracy by class, and against the dense model's where there is one."""
    names, flips = parts(report), _flips(report)
    columns = [report[name]["class_accuracy"] for name in names]
    order = list(range(len(columns[0])))
    if worst_first and _paired(report):
        order.sort(key=lambda k: _loss(columns, k))
    rows: Rows = []
    for k in order:
        counts = (f"{flips['class_samples'][k]:,}",) if flips else ()
        loss = _loss(columns, k) if _paired(report) else None
        paired = ((f"{loss:+.4f}" if None not in (columns[0][k], columns[1][k]) else ""),) if loss is not None else ()
        rows.append((str(k), *counts, *(_number(column[k]) for column in columns), *paired))
    return rows


def layers(part: Mapping[str, Any]) -> Rows:
    """List every weight of a model: shape, counts, density, coverage, costs, forms in training and in the file, why it has no mask."""
    found: Rows = []
    for layer in part["layers"]:
        active, total = layer["active"], layer["maskable"]
        counts = ("", f"{total:,}", "1") if active is None else (f"{active:,}", f"{total:,}", f"{active / total:.4f}")
        seen = _number(layer["coverage"])
        costs = (f"{layer['macs']:,}", f"{layer['macs_active']:,}")
        remark = layer["skip"] or part["forms"].get(layer["name"], "")
        trained = layer.get("training") or ""
        found.append((layer["name"], " x ".join(map(str, layer["shape"])), *counts, seen, *costs, trained, remark))
    return found


def passes(report: Report) -> Rows:
    """Return every pass that made the model and its file: how much it changed, and what it left alone and why."""
    rows: Rows = []
    for row in report["model"]["passes"]:
        left = "; ".join(f"{where}: {reason}" for where, reason in row["left_alone"])
        rows.append((row["pass"], f"{len(row['changed']):,}", f"{len(row['left_alone']):,}", left))
    return rows


def parity(report: Report) -> Rows:
    """How each ONNX file agrees with its program."""
    names = parts(report)
    found = [report[name]["parity"] for name in names]
    return [
        ("batches compared", *(" and ".join(map(str, entry["batches"])) for entry in found)),
        ("samples compared", *(_count(entry.get("samples")) for entry in found)),
        ("outputs per sample compared", *(_count(entry.get("units")) for entry in found)),
        ("largest error, relative", *(f"{entry['largest_error']:.1e}" for entry in found)),
        ("largest tolerance, relative", *(f"{entry['tolerance']:.0e}" for entry in found)),
        ("predictions compared", *(f"{entry['decisions']:,}" for entry in found)),
        ("predictions that are ties", *(_count(entry.get("ties")) for entry in found)),
        ("not compared", *("; ".join(entry.get("uncompared", [])) or "nothing" for entry in found)),
        ("storage", *(report["storage"] for _ in names)),
    ]


def _count(value: int | None) -> str:
    return "not recorded" if value is None else f"{value:,}"


def compute(report: Report) -> Rows:
    """Return what training each model cost, in counts."""
    names = parts(report)
    keys = list(dict.fromkeys(key for name in names for key in report[name]["counts"]))
    return [(key.replace("_", " "), *(f"{report[name]['counts'].get(key, 0):,}" for name in names)) for key in keys]


def schedule(report: Report) -> Rows:
    """Return the steps that the durations of each model's method stood for, and when its rounds were due; empty without any."""
    found = [report[name].get("schedule", {}) for name in parts(report)]
    keys = list(dict.fromkeys(key for entry in found for key in entry if key not in ("total_steps", "rounds")))
    labels = {key: key if "." in key else key.replace("_", " ") for key in keys}
    return [(labels[key], *(_steps(entry.get(key)) for entry in found)) for key in keys]


def _steps(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def facts(report: Report, latency: Report | None) -> Rows:
    """Seed, recipe, versions, data, and the machine that was timed."""
    data = report["data"]
    rows: Rows = [("seed", str(report["seed"])), ("recipe, SHA-256", report["recipe_hash"])]
    rows += [
        ("data", data["name"]),
        ("data, SHA-256", data["fingerprint"]),
        ("task", data.get("task", "classification")),
    ]
    if data["classes"]:  # targets of other tasks are not class numbers
        rows.append(("classes", f"{data['classes']:,}"))
    rows += [(f"samples, {part}", f"{count:,}") for part, count in data["samples"].items()]
    rows += [(name, version) for name, version in report["versions"].items()]
    if latency:
        rows += [(f"timed on, {key}", str(value)) for key, value in latency["machine"].items()]
        rows.append(("timed rounds", f"{latency['rounds']:,}"))
    return rows


def _paired(report: Report) -> bool:
    return "dense" in parts(report)


def _flips(report: Report) -> Mapping[str, Any] | None:
    return report.get("flips") if _paired(report) else None


def _loss(columns: Sequence[Sequence[float | None]], k: int) -> float:
    before, after = columns[0][k], columns[1][k]
    return 0.0 if before is None or after is None else after - before


def _number(value: float | None, style: str = ".4f") -> str:
    return "" if value is None else format(value, style)
