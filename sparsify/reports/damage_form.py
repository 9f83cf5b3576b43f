"""The forms of what a run says of single classes and samples: ``damage`` in ``metrics.json``, and ``answers.json``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from sparsify.reports.latency_form import Form, Pair

Encoded = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$", max_length=1 << 20)]
"""A PNG in base64."""


class ClassDamage(Form):
    """`sparsify.parts.damage.ClassDamage`."""

    samples: int
    dense: float
    sparse: float
    change: float
    interval: Pair
    p: float
    verdict: str
    excess_gap: float
    excess_interval: Pair
    negative_flips: float
    negative_flips_interval: Pair


class Exemplar(Form):
    """A test sample by its number, its label and the answers, and by how much the calibrated probability of the label fell."""

    sample: int
    label: int
    dense: int
    sparse: int
    fall: float


class Damage(Form):
    """`sparsify.parts.damage.Damage`; of the ``lost`` samples that only the dense model has right, those that fell most."""

    samples: int
    churn: float
    churn_interval: Pair
    negative_flips: float
    negative_flips_interval: Pair
    worst_class: int
    max_excess_gap: float
    max_excess_interval: Pair
    classes: Annotated[list[ClassDamage | None], Field(min_length=1)]
    lost: int
    exemplars: Annotated[list[Exemplar], Field(max_length=4000)]

    @model_validator(mode="after")
    def _worst(self) -> Damage:
        if not (0 <= self.worst_class < len(self.classes) and self.classes[self.worst_class]):
            raise ValueError(f"worst_class {self.worst_class} is none of the {len(self.classes)} classes with samples")
        return self


class Answers(Form):
    """``answers.json``: labels of the test samples; by model, what it answers, and its calibrated probability of that.

    ``pictures`` has those of the exemplars whose inputs are images, by the number of the sample.
    """

    fingerprint: str
    labels: Annotated[list[int], Field(min_length=1)]
    answers: dict[str, list[int]]
    confidence: dict[str, list[float]]
    pictures: dict[str, Encoded] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _lengths(self) -> Answers:
        for name, values in (*self.answers.items(), *self.confidence.items()):
            if len(values) != len(self.labels):
                raise ValueError(f"{len(values)} values of {name} for {len(self.labels)} samples")
        if self.answers.keys() != self.confidence.keys() or "model" not in self.answers:
            raise ValueError(
                "answers and confidence should be those of the model, and of the dense model if there is one"
            )
        if min(min(self.labels), *(min(values) for values in self.answers.values())) < 0:
            raise ValueError("classes are numbered from 0")
        return self
