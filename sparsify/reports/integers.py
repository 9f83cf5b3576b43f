"""What a report says of int8 files: what they do on the test samples beside the programs they are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sparsify.pages.sets import figure_rows as set_rows
from sparsify.reports.digits import three_digits

Report = Mapping[str, Any]
Rows = list[tuple[str, ...]]
FIGURES = (
    ("accuracy", "accuracy"),
    ("NLL, calibrated", "nll_after"),
    ("Brier score, calibrated", "brier_after"),
    ("ECE before calibration", "ece_before"),
    ("ECE after calibration", "ece_after"),
)


def in_int8(report: Report) -> list[str]:
    """Return the models that have an int8 file."""
    return [name for name in ("dense", "model") if (report.get(name) or {}).get("int8")]


def int8_title(row: Report) -> str:
    """How the column of an int8 file is called: ``int8``, and that the file is fp32 where no layer computes in int8."""
    return "int8" if _in_integers(row) else "int8: fp32 written"


def _in_integers(row: Report) -> int:
    return sum(form.startswith("int8") for form in row["layers"].values())


def int8_sentence(row: Report) -> str:
    """Return what the int8 file costs in quality: its figures beside the program's, and predictions that differ.

    Args:
        row: under ``int8`` of a model in ``metrics.json``.
    """
    fp32 = row["fp32"]
    integers = _in_integers(row)
    costs = [_figures(row)] if "figures" in row else []
    if "accuracy" in row:
        points = round(100 * (row["accuracy"] - fp32["accuracy"]), 2)
        where = "equal to" if points == 0 else f"{abs(points):.2f} points {'above' if points > 0 else 'below'}"
        costs.append(
            f"accuracy {row['accuracy']:.4f} is {where} that in fp32, ECE {row['ece_after']:.4f} against {fp32['ece_after']:.4f}"
        )
    if row["agreement"] is not None:
        costs.append(f"{100 * row['agreement']:.2f} % of the test predictions are those of fp32")
    elif off := row["held_out"].get("outputs"):
        shown = ", ".join(f"{name} {100 * off[name]:.1f} %" for name in sorted(off))
        costs.append(f"errors of the outputs on held-out samples, relative to their standard deviation: {shown}")
    text = (
        f"The int8 file computes {integers} of {len(row['layers'])} layers in int8 ({row['form']}: the fastest form at batch "
        f"{row['batch']}, {row['threads']} thread(s)); {'; '.join(costs)}. Calibration head: {row['head']}."
    )
    if not integers:
        reason = (
            f"No int8 form may stand in for the program ({refused})"
            if (refused := row.get("refused"))
            else "No int8 form was faster here"
        )
        text += f" {reason}: the file is fp32."
    return text


def _figures(row: Report) -> str:
    """Figures of a task: of the int8 file, against those in fp32."""
    ours, theirs = row["figures"], row["fp32"]["figures"]
    return ", ".join(
        f"{name.replace('_', ' ')} {_shown(ours[name])} against {_shown(theirs[name])} in fp32" for name in _names(row)
    )


def _names(row: Report) -> list[str]:
    """Return the figures of a task, the headline first."""
    return sorted(row["figures"], key=lambda name: (name != row["headline"], name))


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def figure_rows(parts: Sequence[Report], names: Iterable[str], show: Callable[[float | None], str]) -> Rows:
    """Return a row per figure of a task, followed by one of the figure by calibrated probabilities where it differs.

    Args:
        parts: models with ``figures``, as in ``metrics.json``.
        names: the figures.
        show: writes a value, or None.
    """
    rows: Rows = []
    for name in names:
        before, after = (
            tuple(show((part.get(key) or part["figures"]).get(name)) for part in parts)
            for key in ("figures", "figures_after")
        )
        label = name.replace("_", " ")
        rows += [(label, *before)] if before == after else [(label, *before), (f"{label}, calibrated", *after)]
    return rows


def int8_rows(report: Report) -> Rows:
    """One row per figure; for each model in fp32 and in int8."""
    rows = [report[name]["int8"] for name in in_int8(report)]
    parts = [part for row in rows for part in (row["fp32"], row)]
    if "figures" in rows[0]:
        found = figure_rows(parts, _names(rows[0]), _shown)
        for label, key in (("coverage of intervals", "coverage"), ("mean width of intervals", "width")):
            if all(part.get("interval") for part in parts):
                found.append((label, *(_shown(part["interval"][key]) for part in parts)))
    else:
        found = [(label, *(f"{part[key]:.4f}" for part in parts)) for label, key in FIGURES] + set_rows(parts)
    if all(row["agreement"] is not None for row in rows):
        found.append(("predictions as in fp32", *(text for row in rows for text in ("", f"{row['agreement']:.4f}"))))
    held = [row["held_out"] for row in rows]
    found.append(("held-out samples compared", *(text for row in held for text in ("", f"{row['samples']:,}"))))
    found.append(
        (
            "largest error of the logits" if "accuracy" in rows[0] else "largest error of the outputs",
            *(text for row in held for text in ("", f"{row['largest_error']:.1e}")),
        )
    )
    found.append(
        (
            "outputs compared, and how far each is off",
            *(
                text
                for row in held
                for text in ("", "; ".join(f"{k} {v:.1e}" for k, v in row.get("outputs", {}).items()))
            ),
        )
    )
    sizes = [(report[name]["bytes"], report[name]["int8"]["bytes"]) for name in in_int8(report)]
    found.append(("size on disk, bytes", *(f"{size:,}" for pair in sizes for size in pair)))
    found.append(("form", *(text for row in rows for text in ("", row["form"]))))
    found.append(("calibration head", *(text for row in rows for text in ("", row["head"]))))
    return found


def int8_layers(report: Report, latency: Report | None) -> Rows:
    """Each layer of the model's int8 file: its form, and the times of the forms it could have had."""
    timed = ((latency or {}).get("int8") or {}).get("model", {}).get("layers", {})
    return [
        (weight, form, "; ".join(f"{name} {three_digits(1000 * ms)} µs" for name, ms in timed.get(weight, {}).items()))
        for weight, form in report["model"]["int8"]["layers"].items()
    ]


def int8_trials(latency: Report | None) -> Rows:
    """Return the whole files that were timed to choose from, the fastest first."""
    found = ((latency or {}).get("int8") or {}).get("model", {}).get("files", [])
    return [(trial["name"], three_digits(trial["milliseconds"])) for trial in found]
