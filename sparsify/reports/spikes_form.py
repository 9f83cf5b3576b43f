"""The form of a spiking network's spikes in ``metrics.json``, and its tables in the report. Other networks have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsify.reports.latency_form import Form

Report = Mapping[str, Any]
Rows = list[tuple[str, ...]]
MAC_PICOJOULES, ACCUMULATE_PICOJOULES = 4.6, 0.9
"""Energy of a multiply-accumulate and of an addition of float32 in a 45 nm process (Horowitz 2014, doi:10.1109/ISSCC.2014.6757323)."""
LAYER_COLUMNS = ("layer", "neurons", "rate", "by step", "silent", "saturated")


class Layer(Form):
    """`sparsify.ir.spikes.LayerSpikes`."""

    layer: str
    neurons: int
    rates: list[float]
    silent: int
    saturated: int


class Spikes(Form):
    """The spikes of ``samples`` test samples: mean rate of all neurons in [0, 1], figures by layer, and the work per sample."""

    samples: int
    rate: float
    layers: list[Layer]
    macs: float
    accumulates: float


def spikes_rows(report: Report, names: Sequence[str]) -> Rows:
    """Return the rows of spikes for models that spike, by their names in the report."""
    found = [report[name]["spikes"] for name in names]
    energy = [_energy(row) for row in found]
    return [
        ("neurons that fire in a step, mean", *(f"{row['rate']:.4f}" for row in found)),
        ("multiply-accumulates per sample", *(f"{row['macs']:,.0f}" for row in found)),
        (
            "additions per sample, of active weights where a spike came",
            *(f"{row['accumulates']:,.0f}" for row in found),
        ),
        ("energy of these, a proxy, nanojoules", *(f"{value / 1000:,.1f}" for value in energy)),
    ]


def layer_rows(report: Report) -> Rows:
    """Return a row per layer of neurons of the model."""
    found = report["model"].get("spikes")
    return [
        (
            row["layer"],
            f"{row['neurons']:,}",
            f"{sum(row['rates']) / len(row['rates']):.4f}",
            " ".join(f"{rate:.3f}" for rate in row["rates"]),
            f"{row['silent']:,}",
            f"{row['saturated']:,}",
        )
        for row in (found["layers"] if found else ())
    ]


def _energy(row: Mapping[str, Any]) -> float:
    return float(MAC_PICOJOULES * row["macs"] + ACCUMULATE_PICOJOULES * row["accumulates"])
