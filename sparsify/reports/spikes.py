"""Counts the spikes of a trained spiking network with a bounded number of test samples."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from sparsify.ir import Program
from sparsify.ir.spikes import is_spiking, mean_rate, spikes_over
from sparsify.parts.samples import Samples, Subset

MOST = 1000
"""Test samples whose spikes are counted."""


def spikes_row(program: Program, test: Samples) -> dict[str, Any]:
    """Return the key ``spikes`` for the row of a model (`sparsify.reports.spikes_form.Spikes`); no key if the program does not spike.

    Args:
        program: in any mode; it does not change.
        test: the first 1000 are used.
    """
    if not is_spiking(program):
        return {}
    some = Subset(test, torch.arange(min(MOST, len(test))))
    layers, work = spikes_over(program, some)
    rows = [dataclasses.asdict(layer) for layer in layers]
    return {"spikes": {"samples": len(some), "rate": mean_rate(layers), "layers": rows, **dataclasses.asdict(work)}}
