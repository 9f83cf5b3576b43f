"""The verdict of a run in three lines, accuracy, speed and size, each against the dense baseline; and what got worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsify.figures.damage import WORSE
from sparsify.figures.intervals import paired_shares, share_interval
from sparsify.reports.digits import three_digits
from sparsify.reports.selective import clearly_worse
from sparsify.reports.summary_measures import direction

Report = Mapping[str, Any]
WITHOUT = "the run has no baseline (add --baseline, with --resume to keep what was trained)"
SAY = "see task.options.lower_is_better"
CALIBRATION = (("ECE", "ece_after"), ("NLL", "nll_after"), ("Brier score", "brier_after"))
"""What is called worse where the model's printed figure is higher than the dense baseline's."""


def verdict(report: Report, latency: Report | None) -> list[str]:
    """Three lines, on accuracy, speed and size, and one line on what got worse; before them, which models are of no use, and why.

    Args:
        report: content of ``metrics.json``.
        latency: content of ``latency.json``, or None where it was not measured.
    """
    useless = [
        f"The {'dense baseline' if name == 'dense' else 'model'} is of no use: {report[name]['shortfall']}."
        for name in ("model", "dense")
        if (report.get(name) or {}).get("shortfall")
    ]
    return [*useless, _accuracy(report), _speed(report, latency), _size(report), _worse(report)]


def _without(report: Report) -> str:
    """Why nothing is compared with dense: what to add, or why there can be no baseline."""
    return f"not compared with dense: {report.get('without_baseline') or WITHOUT}."


def _accuracy(report: Report) -> str:
    model, dense, flips = report["model"], report.get("dense"), report.get("flips")
    samples = report["data"]["samples"]["test"]
    if "figures" in model:
        return _figure(report)
    if not dense or not flips:
        low, high = share_interval(round(model["accuracy"] * samples), samples)
        return f"Accuracy: {model['accuracy']:.4f} on {samples:,} test samples (95 % interval {low:.4f} to {high:.4f}); {_without(report)}"
    points, (low, high) = paired_shares(flips["lost"], flips["gained"], samples)
    what = "better than dense" if low > 0 else "worse than dense" if high < 0 else "no clear difference to dense"
    return (
        f"Accuracy: {what}, {100 * points:+.2f} points (95 % interval {100 * low:+.2f} to {100 * high:+.2f}, {samples:,} test samples, one "
        f"seed): {model['accuracy']:.4f} against {dense['accuracy']:.4f}."
    )


def _figure(report: Report) -> str:
    """Return the headline figure of a task other than classification, with the interval of the paired bootstrap where the task has one."""
    model, dense, samples = report["model"], report.get("dense"), report["data"]["samples"]["test"]
    key = model["headline"]
    value = model["figures"][key]
    name = key.replace("_", " ")
    if value is None:
        return f"{name}: the {samples:,} test samples do not define it."
    other = dense["figures"].get(key) if dense else None
    if other is None:
        return f"{name}: {value:.4f} on {samples:,} test samples; {_without(report)}"
    paired = report.get("paired") or {}
    if paired.get("interval") and paired["figure"] == key:
        low, high = paired["interval"]
        what = _compared(direction(model, key), low, high, "no clear difference to dense")
        return (
            f"{name}: {what}, {paired['difference']:+.4f} (95 % interval {low:+.4f} to {high:+.4f}, {samples:,} test samples, one seed): "
            f"{value:.4f} against {other:.4f}."
        )
    step = 0.0 if f"{value:.4f}" == f"{other:.4f}" else value - other
    what = _compared(direction(model, key), step, step, "as dense")
    why = f": {paired['reason']}" if paired.get("reason") else ""
    return f"{name}: {what}, {value:.4f} against {other:.4f} ({samples:,} test samples, one seed, without an interval{why})."


def _compared(way: int, low: float, high: float, alike: str) -> str:
    """Return what a difference between two ends is called; ``way`` is from `direction`."""
    if low <= 0 <= high:
        return alike
    if not way:
        return f"{'higher' if low > 0 else 'lower'} than dense, and nothing says which is better ({SAY})"
    return f"{'better' if (low > 0) == (way > 0) else 'worse'} than dense"


def _speed(report: Report, latency: Report | None) -> str:
    if not latency:
        return "Speed: not measured."
    timings = {row["name"]: row for row in latency["timings"]}
    model, where = timings["model"], f"batch {latency['batch']}, {latency['threads']} thread(s)"
    if "dense" not in timings or latency["verdict"] is None:
        return f"Speed: {three_digits(model['milliseconds'])} ms per call at {where}; {_without(report)}"
    low, high = model["interval"]
    return (
        f"Speed: {latency['verdict']}, {model['speedup']:.2f} times as fast as dense (95 % interval {low:.2f} to {high:.2f}) at {where}: "
        f"{three_digits(model['milliseconds'])} ms against {three_digits(timings['dense']['milliseconds'])} ms."
    )


def _size(report: Report) -> str:
    model, dense = report["model"], report.get("dense")
    weights = f"{model['nonzeros']:,} of {model['maskable']:,} maskable weights are not zero"
    if not dense:
        return f"Size: {model['bytes']:,} bytes, {weights}; {_without(report)}"
    share = model["bytes"] / dense["bytes"]
    what = "smaller than dense" if share < 0.995 else "larger than dense" if share > 1.005 else "as large as dense"
    return (
        f"Size: {what}, {100 * share:.1f} % of its bytes on disk ({model['bytes']:,} against {dense['bytes']:,}, counted, so without an "
        f"interval); {weights}."
    )


def _worse(report: Report) -> str:
    dense, model, flips = report.get("dense"), report["model"], report.get("flips")
    if dense and "figures" in model:
        return _worse_figures(model, dense)
    if not dense or not flips:
        return f"Worse than dense: {_without(report)}"
    found = [*_classes(report), *_calibration(dense, model), *clearly_worse(report)]
    return f"Worse than dense: {'; '.join(found)}." if found else "Worse than dense: nothing that was measured."


def _worse_figures(model: Report, dense: Report) -> str:
    found, unknown = list[str](), list[str]()
    for key, ours in model["figures"].items():
        theirs, way = dense["figures"].get(key), direction(model, key)
        if ours is None or theirs is None or f"{ours:.4f}" == f"{theirs:.4f}":
            continue
        if not way:
            unknown.append(key.replace("_", " "))
        elif (ours > theirs) == (way < 0):
            found.append(f"{key.replace('_', ' ')} {ours:.4f} against {theirs:.4f}")
    if unknown:
        found.append(f"not known of {', '.join(unknown)}, of which nothing says which way is better")
    return f"Worse than dense: {'; '.join(found)}." if found else "Worse than dense: nothing that was measured."


def _classes(report: Report) -> list[str]:
    """Return the classes that lost clearly, by tests corrected for their number; without one, the class that lost most, called not clear.

    Runs of earlier versions have no such tests, and each class is judged by its own 95 % interval.
    """
    flips, names = report["flips"], report["data"].get("class_names")
    known = (report.get("damage") or {}).get("classes")
    clear, unclear = list[tuple[float, str]](), list[tuple[float, str]]()
    counts = zip(flips["class_lost"], flips["class_gained"], flips["class_samples"], strict=True)
    for index, (lost, gained, samples) in enumerate(counts):
        if samples and lost > gained:
            points, (_, high) = paired_shares(lost, gained, samples)
            name = f"class {index}" + (f" ({names[index]})" if names else "")
            worse = (known[index] or {}).get("verdict") == WORSE if known else high < 0
            (clear if worse else unclear).append(
                (points, f"{name} by {-100 * points:.2f} points of its {samples:,} samples")
            )
    if clear:
        worst = [text for _, text in sorted(clear)]
        more = f" and {len(worst) - 3} more classes" if len(worst) > 3 else ""
        return [f"accuracy of {', '.join(worst[:3])}{more}"]
    return [f"accuracy of {min(unclear)[1]}, which may be chance"] if unclear else []


def _calibration(dense: Report, model: Report) -> list[str]:
    pairs = ((label, f"{model[key]:.4f}", f"{dense[key]:.4f}") for label, key in CALIBRATION)
    return [f"{label} {ours} against {theirs}" for label, ours, theirs in pairs if float(ours) > float(theirs)]
