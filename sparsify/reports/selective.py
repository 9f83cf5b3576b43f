"""What a report says of selective prediction: how far the confidence of a classifier tells right answers from wrong ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sparsify.reports.summary_measures import measure

Report = Mapping[str, Any]


def is_measured(report: Report) -> bool:
    """Return whether the models of a run have figures of selective prediction; those of earlier versions and other tasks have none."""
    return all((report.get(name) or {}).get("risk_coverage") for name in ("dense", "model") if report.get(name))


def selective_sentences(report: Report) -> list[str]:
    """Return how many samples can be answered at the least measured risk, and what is known of the figures against the baseline."""
    if not is_measured(report):
        return []
    compared = [
        f"{label} {ours} against {theirs}, {what} ({interval})"
        for label, ours, theirs, what, interval in _compared(report)
    ]
    judged = [f"By the confidence of its answers, beside the dense model: {'; '.join(compared)}."] if compared else []
    reasons: dict[str, list[str]] = {}
    for key, row in (report.get("differences") or {}).items():
        if row.get("reason"):
            reasons.setdefault(row["reason"], []).append(_label(key))
    judged += [
        f"{' and '.join(keys)}: not compared with the dense model, since {why}." for why, keys in reasons.items()
    ]
    return [_answered(report), *_choice(report["model"]), *judged]


def clearly_worse(report: Report) -> list[str]:
    """Return the figures of selective prediction that are worse than those of the baseline, with intervals that leave out 0."""
    return [
        f"{label} {ours} against {theirs} ({interval})"
        for label, ours, theirs, what, interval in _compared(report)
        if what == "worse"
    ]


def _answered(report: Report) -> str:
    row, *_ = report["model"]["coverage_at_risk"]["after"]
    risk = f"{100 * row['at_most']:g} %"
    if row["samples"]:
        text = (
            f"The {100 * row['coverage']:.1f} % of the test samples with the highest calibrated confidence ({row['samples']:,}) are "
            f"answered with at most {risk} wrong"
        )
    else:
        text = f"No threshold on the calibrated confidence leaves at most {risk} wrong answers"
    if report.get("dense"):
        other, *_ = report["dense"]["coverage_at_risk"]["after"]
        text += f"; the dense model answers {100 * other['coverage']:.1f} % at that risk"
    return f"{text}."


def _choice(part: Report) -> list[str]:
    """Say which confidence held-out samples chose, if it is not the calibrated probability."""
    choice = part.get("chosen_confidence")
    if not choice or choice["p"] is None:
        return []
    low, plain = choice["held_out"]["norms"][str(choice["p"])], choice["held_out"]["probability"]
    return [
        f"On held-out samples, the highest centred logit divided by its {choice['p']}-norm orders answers better than the calibrated "
        f"probability: AURC {low:.5f} against {plain:.5f}. On the test samples it is {choice['aurc']:.5f} against {part['aurc_after']:.5f}."
    ]


def _compared(report: Report) -> Iterator[tuple[str, ...]]:
    """Yield label, both values, better, worse or no clear difference, and the interval, for each figure that has an interval."""
    for key, row in (report.get("differences") or {}).items():
        if not (row.get("interval") and report.get("dense")):
            continue
        found, (low, high) = measure(key), row["interval"]
        ours, theirs = (format(report[name][key], found.style) for name in ("model", "dense"))
        clear = low > 0 or high < 0
        what = ("better" if (low > 0) == (found.better > 0) else "worse") if clear else "no clear difference"
        ends = f"{format(low, '+' + found.style)} to {format(high, '+' + found.style)}"
        yield _label(key), ours, theirs, what, f"95 % interval of the difference {ends}"


def _label(key: str) -> str:
    return measure(key).label.removesuffix(" after")
