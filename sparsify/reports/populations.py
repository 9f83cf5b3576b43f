"""What a grid says of single answers: how each cell answers beside the dense model of its seed, and exemplars over all seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsify.figures.damage import CONFIDENCE, damage
from sparsify.figures.exemplars import ClassShift, Exemplars, class_shifts, exemplars
from sparsify.reports.headline import Headline

DENSE = "dense"
READING = (
    "Exemplars are the test samples whose most frequent answer over the seeds differs between the dense models and those of the row; ties "
    "go to the higher sum of confidences. Dense models of other seeds differ as well. To compare with that, the seeds are divided into two "
    "groups of equal size in every rotation: differ is the mean share of samples that dense models of one group and models of the row of "
    "the other answer differently, chance the same between dense models of both groups. A class shifts if its recall changed by another "
    "amount than accuracy, by Welch's t-test over the seeds, corrected for the number of classes (5 % of such calls are false on average)."
)
COLUMNS = (
    "sparsity",
    "seeds",
    "exemplars",
    "dense accuracy on them",
    "accuracy on them",
    "differ",
    "chance",
    "classes that shift down, up",
)
Key = tuple[str, float | None, int]


@dataclass(frozen=True)
class Answered:
    """Answers of a cell: its name, sparsity and seed, and the content of its ``answers.json``."""

    name: str
    sparsity: float | None
    seed: int
    content: Mapping[str, Any]

    @property
    def key(self) -> Key:
        return self.name, self.sparsity, self.seed

    def array(self, what: str) -> np.ndarray:
        """Return the ``answers`` or the ``confidence`` of the model, [N]."""
        return np.array(self.content[what]["model"])

    @property
    def labels(self) -> np.ndarray:
        return np.array(self.content["labels"], dtype=np.int64)


@dataclass(frozen=True)
class Population:
    """A method at one sparsity beside the dense models of the same seeds; ``shifts`` by class."""

    name: str
    sparsity: float | None
    found: Exemplars
    shifts: tuple[ClassShift | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-compatible data; exemplars by the number of the sample."""
        found = {**dataclasses.asdict(self.found), "identified": np.flatnonzero(self.found.identified).tolist()}
        shifts = [None if shift is None else dataclasses.asdict(shift) for shift in self.shifts]
        return {"name": self.name, "sparsity": self.sparsity, **found, "shifts": shifts}

    def row(self) -> tuple[str, tuple[str, ...]]:
        """Return the title and the cells of `COLUMNS`."""
        found, clear = self.found, [s for s in self.shifts if s and s.p is not None and s.p <= 1 - CONFIDENCE]
        counts = [sum(shift.shift < 0 for shift in clear), sum(shift.shift > 0 for shift in clear)]
        return self.name, (
            "" if self.sparsity is None else f"{self.sparsity:g}",
            str(found.seeds),
            f"{int(found.identified.sum()):,} ({100 * found.rate:.1f} %)",
            *(_percent(value) for value in (found.dense_accuracy, found.sparse_accuracy, found.between, found.floor)),
            f"{counts[0]}, {counts[1]}",
        )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def beside_dense(cells: Sequence[Answered]) -> dict[Key, dict[str, float]]:
    """Return ``churn`` and ``max_excess_gap`` of each cell against the dense cell of its seed, by the cell's key."""
    dense = {cell.seed: cell for cell in cells if cell.name == DENSE}
    found = dict[Key, dict[str, float]]()
    for cell in cells:
        other = dense.get(cell.seed)
        if other is None or other is cell or other.content["labels"] != cell.content["labels"]:
            continue
        before, after = other.array("answers"), cell.array("answers")
        row = damage(before, after, cell.labels, int(cell.labels.max()) + 1)
        found[cell.key] = {"churn": row.churn, "max_excess_gap": row.max_excess_gap}
    return found


def populations(cells: Sequence[Answered]) -> list[Population]:
    """Compare each method at each sparsity with the dense models of the same seeds, at least two, where all have the same test samples."""
    dense = {cell.seed: cell for cell in cells if cell.name == DENSE}
    groups = dict[tuple[str, float | None], list[Answered]]()
    for cell in cells:
        if cell.name != DENSE and cell.seed in dense:
            groups.setdefault((cell.name, cell.sparsity), []).append(cell)
    found = list[Population]()
    for (name, sparsity), group in sorted(groups.items(), key=lambda item: item[0][1] or 0.0):
        ours = sorted(group, key=lambda cell: cell.seed)
        theirs = [dense[cell.seed] for cell in ours]
        tests = {(cell.content["fingerprint"], tuple(cell.content["labels"])) for cell in (*ours, *theirs)}
        if len(ours) < 2 or len(tests) > 1:
            continue
        before, after = (np.stack([cell.array("answers") for cell in models]) for models in (theirs, ours))
        sure = [np.stack([cell.array("confidence") for cell in models]) for models in (theirs, ours)]
        labels = ours[0].labels
        both = exemplars(before, after, labels, dense_confidence=sure[0], sparse_confidence=sure[1])
        found.append(Population(name, sparsity, both, class_shifts(before, after, labels, int(labels.max()) + 1)))
    return found


def population_table(found: Sequence[Population]) -> Headline:
    """Return a table with a row per method and sparsity."""
    return Headline(COLUMNS, tuple(population.row() for population in found))
