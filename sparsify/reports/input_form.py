"""The part of ``metrics.json`` that says how the file is fed."""

from __future__ import annotations

from sparsify.reports.latency_form import Form, Pair


class Input(Form):
    """How the file is fed: it takes ``(stored / scale - mean) / std`` [N, *shape] where ``type`` is float, and stored bytes for uint8.

    Scale, mean and std are None where they are not known or not used; ``range`` is that of the validation part's first inputs;
    ``stored`` is the form of the data: files, digits, NF, NHW, NHWC, NCHW, or prepared; ``array`` the array of test inputs.
    """

    name: str
    type: str
    dtype: str
    shape: list[int]
    layout: str
    given_as: str
    stored: str
    array: str
    scale: float | None
    mean: list[float] | None
    std: list[float] | None
    range: Pair


class SeveralInputs(Form):
    """One of several inputs of the file; ``array`` is that of its test samples in an archive of named arrays."""

    name: str
    dtype: str
    shape: list[int]
    array: str | None = None
