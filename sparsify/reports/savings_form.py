"""The form of what training saved, in ``metrics.json``."""

from __future__ import annotations

from sparsify.reports.latency_form import Form


class StepMacs(Form):
    """`sparsify.ir.step_macs.StepMacs`, or a mean of it."""

    forward: float
    inputs: float
    weights: float


class Bytes(Form):
    """`sparsify.training.savings.Bytes`."""

    weights: int
    gradients: int
    optimizer: int
    masks: int


class Savings(Form):
    """`sparsify.training.savings.Savings`; ``macs`` is the mean over the steps."""

    steps: int
    macs_dense: StepMacs
    macs: StepMacs
    bytes_dense: Bytes
    bytes_peak: Bytes
    bytes_end: Bytes
    mean_density: float = 1.0
