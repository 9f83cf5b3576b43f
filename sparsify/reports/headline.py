"""The headline: the rows that the terminal and ``report.html`` both show, and the sentences under them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsify.pages import shifts
from sparsify.reports.digits import three_digits
from sparsify.reports.integers import figure_rows, int8_sentence, int8_title
from sparsify.reports.selective import selective_sentences
from sparsify.reports.sets import headline_rows, set_sentences
from sparsify.reports.summary_measures import direction

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Headline:
    """A table: column titles, then rows with a title and one cell per column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


ROWS = (
    ("accuracy", "accuracy", ".4f"),
    ("NLL before calibration", "nll_before", ".4f"),
    ("NLL after calibration", "nll_after", ".4f"),
    ("Brier score, calibrated", "brier_after", ".4f"),
    ("ECE before calibration", "ece_before", ".4f"),
    ("ECE after calibration", "ece_after", ".4f"),
    ("adaptive ECE, calibrated", "adaptive_ece", ".4f"),
    ("class-wise ECE, calibrated", "classwise_ece", ".4f"),
    ("AURC, calibrated", "aurc_after", ".5f"),
    ("AUROC of correctness, calibrated", "correctness_auroc_after", ".4f"),
    ("size on disk, bytes", "bytes", ","),
    ("maskable weights", "maskable", ","),
    ("non-zeros of them", "nonzeros", ","),
    ("density", "density", ".4f"),
    ("density of the whole model", "model_density", ".4f"),
    ("MACs an example", "macs", ","),
)
LATENCY_ROWS = ("latency, ms", "times as fast as dense")
LOWER_IS_BETTER = (
    ("NLL", "nll_after"),
    ("Brier score", "brier_after"),
    ("ECE", "ece_after"),
    ("adaptive ECE", "adaptive_ece"),
    ("class-wise ECE", "classwise_ece"),
)
PLAIN, OWN = "maximum probability", "ood_score"
"""The out-of-distribution score that every model has, and the one that a method may add."""
SCALING = ("temperature", "vector", "matrix")
"""Heads that are called scaling of their name."""
SMALLER = 0.9
"""A file with more than this share of the dense file's bytes is not called smaller."""


def parts(report: Report) -> list[str]:
    """Return the models of a run: ``dense`` where it has a baseline, then ``model``."""
    return [name for name in ("dense", "model") if report.get(name)]


def title(part: str, report: Report) -> str:
    """``dense`` for the baseline, the method's name for the model."""
    return "dense" if part == "dense" else str(report["model"]["method"])


def headline(report: Report, latency: Report | None) -> Headline:
    """Return the table of a run.

    Args:
        report: content of ``metrics.json``.
        latency: content of ``latency.json``, or None where it was not measured.
    """
    columns = _columns(report)
    rows = [
        (label, tuple("" if column[key] is None else format(column[key], style) for column in columns.values()))
        for label, key, style in ROWS
        if all(key in column for column in columns.values())
    ]
    rows[:0] = _figures(columns)
    rows += headline_rows([*columns.values()])
    rows += [(f"AUROC against {name}, {score}", cells) for (name, score), cells in _aurocs(report, columns).items()]
    if latency:
        timings = {row["name"]: row for row in latency["timings"]}
        rows.append((LATENCY_ROWS[0], tuple(_milliseconds(timings[n]) if n in timings else "" for n in columns)))
        if "dense" in columns:
            ratios = ("1" if n == "dense" else _ratio(timings[n]) if n in timings else "" for n in columns)
            rows.append((LATENCY_ROWS[1], tuple(ratios)))
    return Headline(tuple(column["title"] for column in columns.values()), tuple(rows))


def _figures(columns: Mapping[str, Report]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the figures of a task other than classification, the headline first, and what intervals hold."""
    model = columns["model"]
    found = [(label, tuple(cells)) for label, *cells in figure_rows([*columns.values()], figure_names(model), _shown)]
    if model.get("interval"):
        level = model["calibration"]["level"]
        for label, key in (
            (f"coverage of {100 * level:g} % intervals", "coverage"),
            ("mean width of intervals", "width"),
        ):
            found.append((label, tuple(_shown((c.get("interval") or {}).get(key)) for c in columns.values())))
    return found


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


def headline_figure(report: Report) -> str:
    """Return the key of the figure that stands for all of a run: the task's first, ``accuracy`` of classification."""
    return str(report["model"].get("headline", "accuracy"))


def figure_names(model: Report) -> list[str]:
    """Return the figures of a task other than classification, the headline first."""
    return sorted(model.get("figures", ()), key=lambda name: name != model["headline"])


def _columns(report: Report) -> dict[str, dict[str, Any]]:
    """Return the figures by name of the file: of every model, followed by its int8 file."""
    found: dict[str, dict[str, Any]] = {}
    for name in parts(report):
        found[name] = {**report[name], "title": title(name, report)}
        if row := report[name].get("int8"):
            found[f"{name}-int8"] = {**report[name], **row, "title": f"{title(name, report)}, {int8_title(row)}"}
    return found


def sentences(report: Report, latency: Report | None) -> list[str]:
    """Return what the figures say, the losses too, in plain sentences.

    Args:
        report: content of ``metrics.json``.
        latency: content of ``latency.json``, or None.
    """
    model = report["model"]
    found = [
        f"{model['nonzeros']:,} of {model['maskable']:,} maskable weights are not zero (density {model['density']:.4f}); "
        f"{model['macs']:,} multiply-accumulates an example are left. {100 * model['model_density']:.1f} % of all the model's "
        f"{model['params']:,} weights are active."
    ]
    if model["mostly_dense"]:
        found.append(model["mostly_dense"])
    if model["unknown"]:
        found.append(uncounted(model["unknown"]))
    if model.get("teacher"):
        found.append(_teacher(model["teacher"], headline_figure(report)))
    if "dense" in parts(report):
        judged = _task_figures(report) if "figures" in model else [_accuracy(report), *_better_and_worse(report)]
        found += [*judged, _size(report)]
    found += _task_calibrated(model) if "figures" in model else [_calibrated(report)]
    found += [*selective_sentences(report), *set_sentences(report), *_told_apart(report)]
    found += [shifts.sentence(model["shift"])] if model.get("shift") else []
    found.append(_agreement(model["parity"]))
    if latency and latency["verdict"]:
        found.append(_speed(report, latency))
    if model.get("int8"):
        found.append(int8_sentence(model["int8"]) + _int8_speed(latency))
    return found


def _teacher(teacher: Report, figure: str) -> str:
    value = teacher.get("figures", teacher)[figure]
    return f"It learned from a teacher, {teacher['name']}, of {figure.replace('_', ' ')} {_shown(value)}."


def uncounted(operators: Sequence[str]) -> str:
    """Return what the multiply-accumulates leave out."""
    return f"Multiply-accumulates are not counted of {', '.join(operators)}, which may multiply."


def sets(part: Report) -> Report:
    """Return what was measured of a model on out-of-distribution inputs, by the name of the set; empty where none were given."""
    return part.get("ood") or {}


def own_score(part: Report) -> str:
    """Return the score that a model is judged by: its method's own where it has one."""
    return OWN if any(OWN in row["scores"] for row in sets(part).values()) else PLAIN


def _aurocs(report: Report, columns: Mapping[str, Report]) -> dict[tuple[str, str], tuple[str, ...]]:
    """AUROC of each model by set and score; empty where a model does not have the score."""
    names, found = parts(report), dict[tuple[str, str], tuple[str, ...]]()
    for ood in sets(report["model"]):
        for score in dict.fromkeys((PLAIN, *(own_score(report[name]) for name in names))):
            rows = (report[name]["ood"][ood]["scores"].get(score) if name in names else None for name in columns)
            found[ood, score] = tuple("" if row is None else f"{row['auroc']:.4f}" for row in rows)
    return found


def _told_apart(report: Report) -> list[str]:
    model, found = report["model"], list[str]()
    score = own_score(model)
    for name, row in sets(model).items():
        text = f"{row['samples']:,} inputs of {name} are told from test inputs with AUROC {row['scores'][score]['auroc']:.4f} by {score}"
        if score != PLAIN:
            text += f", {row['scores'][PLAIN]['auroc']:.4f} by {PLAIN}"
        if "dense" in parts(report):
            text += f"; the dense model has {report['dense']['ood'][name]['scores'][PLAIN]['auroc']:.4f} by {PLAIN}"
        share = row["scores"][score]["fpr_at_95_tpr"]
        found.append(f"{text}. Where 95 % of the test inputs are accepted, so are {100 * share:.1f} % of them.")
    if choice := model.get("ood_choice"):
        found.append(
            f"The ood_score is {choice['chosen']}, the best of {len(choice['auroc'])} scores on {' and '.join(choice['outliers'])}, with a "
            f"mean AUROC of {choice['auroc'][choice['chosen']]:.4f}. No test input and no set above was used for this choice."
        )
    if model.get("ood_threshold") is not None:
        found.append(
            f"95 % of the validation samples have an ood_score of at least {model['ood_threshold']:.4f}, which the file holds."
        )
    return found


def _int8_speed(latency: Report | None) -> str:
    """Return the int8 file against the others of the run, by the medians of one comparison."""
    times = {row["name"]: row["milliseconds"] for row in latency["timings"]} if latency else {}
    if "model-int8" not in times:
        return ""
    others = (
        ("model", "the model's fp32 file"),
        ("dense", "the dense fp32 file"),
        ("dense-int8", "the dense model in int8"),
    )
    ratios = [
        f"{times[name] / times['model-int8']:.2f} times as fast as {what}" for name, what in others if name in times
    ]
    return f" At batch {latency['batch'] if latency else 1} it is {', '.join(ratios)}."


def _milliseconds(timing: Report) -> str:
    low, high = timing["quartiles"]
    return f"{three_digits(timing['milliseconds'])} ({three_digits(low)} to {three_digits(high)})"


def _ratio(timing: Report) -> str:
    low, high = timing["interval"]
    return f"{timing['speedup']:.2f} ({low:.2f} to {high:.2f})"


def _accuracy(report: Report) -> str:
    points = round(100 * (report["model"]["accuracy"] - report["dense"]["accuracy"]), 2)
    where = "equal to" if points == 0 else f"{abs(points):.2f} points {'above' if points > 0 else 'below'}"
    text = f"Accuracy is {where} that of the dense baseline, which had the same steps and data (one seed: {report['seed']})."
    flips = report.get("flips")
    if not flips:
        return text
    samples = sum(flips["class_samples"])
    text += (
        f" Of {samples:,} test samples, {flips['lost']:,} that the dense model has right are now wrong, and {flips['gained']:,} the other "
        f"way round."
    )
    changes = [
        (100 * (gained - lost) / count, index)
        for index, (lost, gained, count) in enumerate(
            zip(flips["class_lost"], flips["class_gained"], flips["class_samples"], strict=True)
        )
        if count
    ]
    worst = min(changes, default=(0.0, 0))
    if worst[0] < 0:
        text += f" Class {worst[1]} loses most: {-worst[0]:.2f} points."
    return text


def _task_figures(report: Report) -> list[str]:
    """Return the figures of a task beside those of the baseline."""
    found: dict[int, list[str]] = {1: [], -1: [], 0: []}
    model, dense = report["model"], report["dense"]
    for key, ours in model["figures"].items():
        theirs = dense["figures"].get(key)
        if ours is None or theirs is None or _shown(ours) == _shown(theirs):
            continue
        way = direction(model, key) * (1 if ours > theirs else -1)
        found[way].append(f"{key.replace('_', ' ')} {_shown(ours)} against {_shown(theirs)}")
    said = {1: "Better than", -1: "Worse than", 0: "With nothing that says which is better, beside"}
    return [f"{said[way]} the dense model: {', '.join(rows)}." for way, rows in found.items() if rows]


def _task_calibrated(model: Report) -> list[str]:
    fitted = model["calibration"]
    if fitted is None:
        return []
    if fitted["kind"] == "interval":
        text = (
            f"Intervals of {100 * fitted['level']:g} %, fitted on {fitted['samples']:,} held-out samples, hold "
            f"{100 * model['interval']['coverage']:.1f} % of the test targets; their mean width is {_shown(model['interval']['width'])}."
        )
    else:
        text = f"The calibration head ({fitted['kind']}) was fitted on {fitted['samples']:,} held-out samples"
        if fitted["ece_before"] is not None:
            text += f": their ECE is {fitted['ece_before']:.4f} before and {fitted['ece_after']:.4f} after"
        text += "." + _test_change(model)
    return [text + (f" The calibration is {fitted['note']}." if fitted.get("note") else "")]


def _test_change(model: Report) -> str:
    """Return what the calibrated probabilities of a task change on the test samples; empty if there are none."""
    if not model.get("figures_after"):
        return ""
    pairs = (
        (name, _shown(model["figures"][name]), _shown(model["figures_after"].get(name))) for name in figure_names(model)
    )
    changed = [
        f"{name.replace('_', ' ')} {after} after, {before} before" for name, before, after in pairs if before != after
    ]
    return f" On the test samples: {'; '.join(changed)}." if changed else " It changes no figure of the test samples."


def _better_and_worse(report: Report) -> list[str]:
    found: dict[str, list[str]] = {"better": [], "worse": []}
    for label, key in LOWER_IS_BETTER:
        dense, model = (f"{report[name][key]:.4f}" for name in ("dense", "model"))
        if dense != model:
            kind = "better" if float(model) < float(dense) else "worse"
            found[kind].append(f"{label} {model} against {dense}")
    return [f"{kind.capitalize()} than the dense model: {', '.join(rows)}." for kind, rows in found.items() if rows]


def _size(report: Report) -> str:
    model, dense = report["model"]["bytes"], report["dense"]["bytes"]
    if model < SMALLER * dense:
        return f"The file is {dense / model:.1f} times smaller than the dense one ({model:,} bytes against {dense:,})."
    text = f"The file is not smaller than the dense one ({model:,} bytes against {dense:,})"
    if report["storage"] == "dense":
        return (
            text
            + ": zeros are stored like other numbers. Storage 'sparse' keeps only the non-zeros, for disk and not for speed."
        )
    return text + ": at this density, indices cost what zeros save."


def _calibrated(report: Report) -> str:
    model = report["model"]
    fitted = model["calibration"]
    before, after = f"{model['ece_before']:.4f}", f"{model['ece_after']:.4f}"
    change = "did not change" if before == after else "lowered" if float(after) < float(before) else "raised"
    lean = "over-confident" if model["signed_gap_after"] > 0 else "under-confident"
    if fitted["nll_before"] is None:
        text = f"The head {fitted['kind']} was fitted on {fitted['samples']:,} held-out samples, and makes no probabilities."
        return text + (f" It is {fitted['note']}." if fitted.get("note") else "")
    scaled = fitted["kind"] in SCALING
    name = f"{fitted['kind'].capitalize()} scaling" if scaled else f"The head {fitted['kind']}"
    text = (
        f"{name}, fitted on {fitted['samples']:,} held-out samples, {change} the test ECE "
        f"({before} before, {after} after); confidence is then {100 * abs(model['signed_gap_after']):.2f} points off on average, {lean}."
    )
    if fitted.get("note"):
        text += f" The calibration is {fitted['note']}."
    if model["accuracy_after"] != model["accuracy"]:
        by_head, by_logits = model["accuracy_after"], model["accuracy"]
        text += (
            f" It changes decisions: accuracy is {by_head:.4f} by the calibrated probabilities, not {by_logits:.4f}."
        )
    return text


def _agreement(parity: Report) -> str:
    text = (
        f"ONNX Runtime agrees with the program as it was trained: largest error {parity['largest_error']:.1e}, relative to each output; "
        f"tolerance {parity['tolerance']:.0e} at most"
    )
    text += f"; {parity['decisions']:,} predictions compared." if parity["decisions"] else "."
    missing = parity.get("uncompared", [])
    return f"{text} Not compared: {'; '.join(missing)}." if missing else text


def _speed(report: Report, latency: Report) -> str:
    timing = next(row for row in latency["timings"] if row["name"] == "model")
    low, high = latency["noise"]
    text = (
        f"Latency at batch {latency['batch']}, {latency['threads']} thread(s): {_ratio(timing)} times as fast as the dense file: "
        f"{latency['verdict']} (the dense file against itself: {low:.2f} to {high:.2f})."
    )
    grouped = sum(form == "grouped" for form in report["model"]["forms"].values())
    if grouped:
        text += f" In the file, {grouped} weight(s) are small dense blocks of what is active."
    elif latency["verdict"] != "faster" and report["model"]["density"] < 1:
        text += " Zeros in a dense file do not make a stock runtime faster: it multiplies them like other numbers."
    return text
