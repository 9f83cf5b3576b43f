"""What a run measures and says of prediction sets and of accepted answers, beside what their heads were asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sparsify.figures.sets import accepted_figures, set_figures
from sparsify.pages.sets import ACCEPT, SETS, figure_rows

Report = Mapping[str, Any]
Rows = list[tuple[str, ...]]
SHORT = ((SETS, "coverage"), (SETS, "mean_size"), (ACCEPT, "coverage"), (ACCEPT, "risk"))
"""The figures of the headline."""


def beside_probabilities(outputs: Mapping[str, Tensor], probabilities: Tensor, labels: Tensor) -> dict[str, Any]:
    """Measure the outputs ``prediction_set`` and ``accept`` of a classifier on the test samples.

    Args:
        outputs: of a program or a file, by name. Flags may be numbers, 0 or 1.
        probabilities: calibrated, [N, K].
        labels: class numbers [N].

    Returns:
        ``prediction_set`` and ``accept``, the figures of `sparsify.figures.sets`. An output that the program lacks is left out, and so is
        one of that name that holds something else than flags [N, K] or [N].
    """
    found, count = dict[str, Any](), len(labels)
    if (sets := _flags(outputs, SETS, tuple(probabilities.shape))) is not None:
        found[SETS] = set_figures(sets, labels)
    if (taken := _flags(outputs, ACCEPT, (count,))) is not None:
        found[ACCEPT] = accepted_figures(taken, probabilities.argmax(1) == labels)
    return found


def _flags(outputs: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor | None:
    value = outputs.get(name)
    if value is None or tuple(value.shape) != shape or not bool(((value == 0) | (value == 1)).all()):
        return None
    return value.bool()


def is_measured(report: Report) -> bool:
    """Return whether a model of the run has prediction sets, or accepts answers."""
    return any((report.get(name) or {}).get(key) for name in ("dense", "model") for key in (SETS, ACCEPT))


def asked(part: Report, output: str, value: str) -> float | None:
    """Return what the head of an output was asked for, such as the ``coverage`` of sets; None if that is unknown.

    Args:
        part: a model of ``metrics.json``.
        output: name of the output.
        value: name of the value of the head.
    """
    heads = (part.get("calibration") or {}).get("heads") or ()
    return next((head.get("values", {}).get(value) for head in heads if output in head["outputs"]), None)


def headline_rows(columns: Sequence[Report]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the rows of the headline, with what was asked for in their labels; empty without such outputs."""
    return [(label, tuple(cells)) for label, *cells in _labelled(columns, figure_rows(columns, SHORT))]


def figures(models: Sequence[Report]) -> Rows:
    """Return a row per figure with its interval, a cell per model."""
    return _labelled(models, figure_rows(models, intervals=True))


def _labelled(models: Sequence[Report], rows: Rows) -> Rows:
    """Add what the heads were asked for to the labels of coverage and risk."""
    wanted = {
        "coverage of prediction sets": (SETS, "coverage", ""),
        "share of wrong answers among the accepted": (ACCEPT, "risk", "at most "),
    }
    found: Rows = []
    for label, *cells in rows:
        text = label
        if label in wanted:
            output, value, most = wanted[label]
            values = dict.fromkeys(asked(model, output, value) for model in models if model.get(output))
            if len(values) == 1 and (only := next(iter(values))) is not None:
                text += f", asked for: {most}{only:g}"
        found.append((text, *cells))
    return found


def by_class(report: Report, titles: Mapping[str, str]) -> Rows:
    """Return the coverage of the sets of each class; ``titles`` by model. Empty without sets."""
    rows = [report[name].get(SETS) for name in titles]
    names = report["data"].get("class_names") or ()
    classes = max((len(row["class_coverage"]) for row in rows if row), default=0)
    return [
        (
            f"{k} {names[k]}" if k < len(names) and names[k] != str(k) else str(k),
            *("" if not row or row["class_coverage"][k] is None else f"{row['class_coverage'][k]:.4f}" for row in rows),
        )
        for k in range(classes)
    ]


def set_sentences(report: Report) -> list[str]:
    """Return what the sets hold and what is accepted, beside what was asked for, in plain sentences."""
    model, dense, found = report["model"], report.get("dense") or {}, list[str]()
    if row := model.get(SETS):
        text = (
            f"Prediction sets hold the right class of {_percent(row['coverage'], row['interval'])} of the test samples"
        )
        if (wanted := asked(model, SETS, "coverage")) is not None:
            text += f"; {100 * wanted:g} % were asked for"
        text += f". Their mean size is {row['mean_size']:.3f}"
        text += f"; {100 * row['singletons']:.1f} % hold one class, {100 * row['empty']:.1f} % none."
        if other := dense.get(SETS):
            text += f" Those of the dense model hold it of {100 * other['coverage']:.1f} %; their mean size is {other['mean_size']:.3f}."
        found.append(text)
    if row := model.get(ACCEPT):
        found.append(_accepted(row, asked(model, ACCEPT, "risk"), dense.get(ACCEPT)))
    return found


def _accepted(row: Report, wanted: float | None, dense: Report | None) -> str:
    if row["risk"] is None:
        text = "No answer to a test sample is accepted"
    else:
        text = (
            f"Accepted are the answers to {100 * row['coverage']:.1f} % of the test samples, of which "
            f"{_percent(row['risk'], row['risk_interval'])} are wrong; of all answers, {100 * row['risk_of_all']:.1f} % are"
        )
    text += "" if wanted is None else f". At most {100 * wanted:g} % were asked for"
    if dense and dense["risk"] is not None:
        text += (
            f". The dense model accepts {100 * dense['coverage']:.1f} %, of which {100 * dense['risk']:.1f} % are wrong"
        )
    elif dense:
        text += ". The dense model accepts none"
    return f"{text}."


def _percent(share: float, ends: Sequence[float]) -> str:
    return f"{100 * share:.1f} % (95 % interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f} %)"
