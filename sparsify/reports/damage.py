"""What a report says of the classes and samples that a sparse model loses beside its dense baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsify.figures.damage import BETTER, UNCLEAR, WORSE
from sparsify.pages.markup import Table

Report = Mapping[str, Any]
Rows = list[tuple[str, ...]]
MOST_CLASSES = 20
"""More classes than this are shown by what they lost, the worst first, and all of them folded away."""
COLUMNS = (
    "class",
    "test samples",
    "recall, dense",
    "recall, sparse",
    "change, points",
    "excess gap, points",
    "only dense right",
    "",
)


def damage_section(report: Report, pictures: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the content of the section, for the template; None without a baseline, or for a task without classes of samples.

    Args:
        report: content of ``metrics.json``.
        pictures: PNG in base64 of exemplars, by the number of the sample; those of ``answers.json``.
    """
    if not report.get("damage"):
        return None
    found, shown = report["damage"], gallery(report, pictures)
    many = sum(row is not None for row in found["classes"]) > MOST_CLASSES
    every = Table(COLUMNS, class_rows(report))
    rows = [tuple(one[key] for key in ("sample", "label", "dense", "sparse", "fall")) for one in shown]
    return {
        "sentences": damage_sentences(report),
        "shown": Table(COLUMNS, class_rows(report, worst_first=True)[:MOST_CLASSES]) if many else every,
        "every": every if many else None,
        "told": (
            f"The dense model has {found['lost']:,} test samples right that the sparse model has wrong. These are the {len(shown)} whose "
            f"label lost most of its calibrated probability."
        ),
        "exemplars": shown,
        "pictured": bool(shown) and all(one["picture"] for one in shown),
        "listed": Table(("test sample", "label", "dense", "sparse", "probability lost, points"), rows),
    }


def damage_sentences(report: Report) -> list[str]:
    """Return what all samples and the worst class lose, and how the classes were judged."""
    found = report["damage"]
    low, high = (100 * end for end in found["churn_interval"])
    text = (
        f"The models answer {100 * found['churn']:.1f} % of the {found['samples']:,} test samples differently (churn; 95 % interval "
        f"{low:.1f} to {high:.1f}). "
    )
    low, high = (100 * end for end in found["negative_flips_interval"])
    text += f"The dense model has {100 * found['negative_flips']:.1f} % right that the sparse model has wrong ({low:.1f} to {high:.1f})."
    name, (low, high) = class_name(report, found["worst_class"]), (100 * end for end in found["max_excess_interval"])
    worst = (
        f"The largest excess gap is that of class {name}: its loss of recall exceeds the loss of accuracy by "
        f"{100 * found['max_excess_gap']:.1f} points (95 % interval {low:.1f} to {high:.1f}, for all classes together)."
    )
    if low <= 0:
        worst += " It may be chance: one of the classes always has the largest gap."
    return [text, worst, *_judged(report)]


def _judged(report: Report) -> Iterator[str]:
    rows = [(k, row) for k, row in enumerate(report["damage"]["classes"]) if row]
    for verdict in (WORSE, BETTER):
        names = [class_name(report, k) for k, row in rows if row["verdict"] == verdict]
        if names:
            yield f"Recall is {verdict} than the dense model's for {len(names)} of {len(rows)} classes: {', '.join(names)}."
    if all(row["verdict"] == UNCLEAR for _, row in rows):
        yield f"No class of {len(rows)} is clearly worse or better."


def class_rows(report: Report, *, worst_first: bool = False) -> Rows:
    """Return a row of text per class with test samples; see `COLUMNS`."""
    rows = [(k, row) for k, row in enumerate(report["damage"]["classes"]) if row]
    if worst_first:
        rows.sort(key=lambda item: -item[1]["excess_gap"])
    return [
        (
            class_name(report, k),
            f"{row['samples']:,}",
            f"{row['dense']:.4f}",
            f"{row['sparse']:.4f}",
            _points(row["change"], row["interval"]),
            _points(row["excess_gap"], row["excess_interval"]),
            f"{100 * row['negative_flips']:.1f} %",
            "" if row["verdict"] == UNCLEAR else row["verdict"],
        )
        for k, row in rows
    ]


def _points(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def gallery(report: Report, pictures: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the exemplars as texts, with a PNG in base64, or the empty text for inputs that are no images."""
    return [
        {
            "sample": f"{row['sample']:,}",
            "picture": pictures.get(str(row["sample"]), ""),
            "label": class_name(report, row["label"]),
            "dense": class_name(report, row["dense"]),
            "sparse": class_name(report, row["sparse"]),
            "fall": f"{100 * row['fall']:.0f}",
        }
        for row in report["damage"]["exemplars"]
    ]


def class_name(report: Report, index: int) -> str:
    """Return a class by number and, if the data have one, by name."""
    names = report["data"].get("class_names") or ()
    return f"{index} ({names[index]})" if index < len(names) and names[index] != str(index) else str(index)
