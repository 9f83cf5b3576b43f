"""What training saved: the multiply-accumulates, the memory and the time of a step beside a dense one, in tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsify.reports.digits import three_digits

Report = Mapping[str, Any]
Rows = list[tuple[str, ...]]
CLEAR = 0.05
"""A step is called faster or slower than a dense one if the interval of the ratio lies further from 1 than this."""
MACS = (
    ("forward pass", "forward"),
    ("gradients of the values between layers", "inputs"),
    ("gradients of the weights", "weights"),
)
BYTES = (
    ("weights", "weights"),
    ("gradients", "gradients"),
    ("optimizer state", "optimizer"),
    ("masks and indices", "masks"),
)


def macs_rows(report: Report) -> Rows:
    """Return the multiply-accumulates per sample of a step: of what, of a dense step, and the mean of this run."""
    found = report["model"]["savings"]
    parts = [(label, found["macs_dense"][key], found["macs"][key]) for label, key in MACS]
    parts.append(("together", _total(found["macs_dense"]), _total(found["macs"])))
    return [(label, f"{dense:,.0f}", f"{mean:,.0f}") for label, dense, mean in parts]


def bytes_rows(report: Report) -> Rows:
    """Return the bytes that a step holds: of what, of a dense run, the most of this run, and those at its end."""
    found = [report["model"]["savings"][key] for key in ("bytes_dense", "bytes_peak", "bytes_end")]
    parts = [(label, *(row[key] for row in found)) for label, key in BYTES]
    parts.append(("together", *(_total(row) for row in found)))
    return [(label, *(f"{count:,}" for count in counts)) for label, *counts in parts]


def is_shown(report: Report) -> bool:
    """Return whether there is something to tell: masks, and what their training took."""
    return bool(report["model"].get("savings")) and any(row["active"] is not None for row in report["model"]["layers"])


def savings_sentences(report: Report, latency: Report | None) -> list[str]:
    """Return what training saved in plain sentences, also where that is nothing.

    Args:
        report: content of ``metrics.json``.
        latency: content of ``latency.json``, or None.
    """
    found = report["model"]["savings"]
    macs, held, most = _total(found["macs"]), _total(found["bytes_dense"]), _total(found["bytes_peak"])
    masked = [row for row in report["model"]["layers"] if row["active"] is not None]
    compact = sum((row.get("training") or "").startswith("compact") for row in masked)
    share = _share(macs, _total(found["macs_dense"]))
    text = (
        f"On average over the run, a training step took {macs:,.0f} multiply-accumulates per sample, {share} of a dense step. {compact} of "
        f"{len(masked)} masked weights were stored compact by its end"
    )
    if compact < len(masked):
        text += "; a weight that is stored dense with a mask is multiplied whole and saves none"
    if "mean_density" in found:
        text += f". On average over the steps, {found['mean_density']:.3f} of the masked positions were active"
    return [
        text + ".",
        f"Weights, gradients, optimizer state, masks and indices took {most:,} bytes at most, {_share(most, held)} of a dense run, and "
        f"{_total(found['bytes_end']):,} at the end. Activations are not counted.",
        _time(_times(latency)),
    ]


def savings_line(report: Report, latency: Report | None) -> str:
    """Return one line on what training saved, for the terminal; empty without masks."""
    if not is_shown(report):
        return ""
    found, times = report["model"]["savings"], _times(latency)
    macs, held = (
        _share(_total(found[ours]), _total(found[dense]))
        for ours, dense in (("macs", "macs_dense"), ("bytes_peak", "bytes_dense"))
    )
    parts = "weights, gradients, optimizer state, masks"
    text = f"Training: {macs} of the multiply-accumulates and {held} of the memory of dense steps ({parts})"
    compared = times["compared"] if times else None
    if not times or not compared:
        reason = f": {times['reason']}" if times else ""
        return f"{text}; time not compared with dense{reason}."
    low, high = compared["interval"]
    return f"{text}; a step with the final masks is {_verdict(compared)}, {compared['ratio']:.2f} of its time ({low:.2f} to {high:.2f})."


def _time(times: Report | None) -> str:
    if not times:
        return "Times of training steps were not measured."
    text = (
        f"The median training step took {three_digits(times['milliseconds'])} ms at batch {times['batch_size']} ({times['steps']:,} steps, "
        f"with rounds and all that the method does; without loading data, evaluations and checkpoints)."
    )
    compared = times["compared"]
    if not compared:
        return f"{text} It was not compared with a dense step: {times['reason']}."
    low, high = compared["interval"]
    return (
        f"{text} With the final masks, a step without rounds, corrections, attacks and teachers is {_verdict(compared)}: it takes "
        f"{compared['ratio']:.2f} of its time (95 % interval {low:.2f} to {high:.2f}, {compared['pairs']} pairs in turns), "
        f"{three_digits(compared['milliseconds'])} ms against {three_digits(compared['dense_milliseconds'])} ms."
    )


def _verdict(compared: Report) -> str:
    low, high = compared["interval"]
    if high < 1 - CLEAR:
        return "faster than a dense step"
    return "slower than a dense step" if low > 1 + CLEAR else "not clearly faster or slower than a dense step"


def _times(latency: Report | None) -> Report | None:
    return ((latency or {}).get("training") or {}).get("model")


def _total(counts: Mapping[str, Any]) -> Any:
    return sum(counts.values())


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.2f}" if whole else "1.00"
