"""The form of ``latency.json``, and what every form of a file shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Two = Field(min_length=2, max_length=2)
Few = Field(max_length=4000)
"""Bound on the length of lists whose entries are drawn, each as a bar or a bin of a plot."""
Pair = Annotated[list[float], Two]


class Form(BaseModel):
    """Keys with their types; further keys are allowed."""

    model_config = ConfigDict(extra="ignore", strict=True)  # strict: text is not taken for a number


class TimingRow(Form):
    """`sparsify.reports.latency.Timing`."""

    name: str
    milliseconds: float
    quartiles: Pair
    speedup: float
    interval: Pair


class FileTrial(Form):
    """A file that was timed to choose the form of an int8 file."""

    name: str
    milliseconds: float


class Int8Trials(Form):
    """What an int8 file was chosen by; ``layers`` has milliseconds by weight and form."""

    batch: int
    threads: int
    files: list[FileTrial]
    layers: dict[str, dict[str, float]]


class ComparedSteps(Form):
    """`sparsify.training.step_times.Compared`."""

    milliseconds: float
    dense_milliseconds: float
    ratio: float
    interval: Pair
    pairs: int


class TrainingTimes(Form):
    """`sparsify.training.step_times.StepTimes`."""

    milliseconds: float
    steps: int
    batch_size: int
    compared: ComparedSteps | None
    reason: str = ""


class LatencyFile(Form):
    """``latency.json``: `sparsify.reports.latency.Latency`, the verdict on the model where there is a baseline, and the times of training
    steps by model."""

    timings: list[TimingRow]
    noise: Pair
    threads: int
    batch: int
    rounds: int
    machine: dict[str, str | int | None]
    verdict: str | None
    int8: dict[str, Int8Trials] | None = None
    training: dict[str, TrainingTimes] | None = None
