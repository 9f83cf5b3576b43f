"""What is said of the savings of training, by hand: nothing is called faster that was not measured so."""

from __future__ import annotations

import pytest

from sparsify.reports.savings import bytes_rows, is_shown, macs_rows, savings_line, savings_sentences


def report(form="compact since step 1", active=25):
    held = {"weights": 400, "gradients": 400, "optimizer": 200, "masks": 0}
    savings = {
        "steps": 10,
        "macs_dense": {"forward": 1000, "inputs": 500, "weights": 1000},
        "macs": {"forward": 300.0, "inputs": 150.0, "weights": 350.5},
        "bytes_dense": held,
        "bytes_peak": {**held, "optimizer": 100, "masks": 100},
        "bytes_end": {"weights": 100, "gradients": 100, "optimizer": 50, "masks": 100},
    }
    return {"model": {"savings": savings, "layers": [{"active": active, "training": form}]}}


def latency(interval=(0.3, 0.4), compared=True, reason=""):
    pairs = {
        "milliseconds": 1.0,
        "dense_milliseconds": 3.0,
        "ratio": sum(interval) / 2,
        "interval": interval,
        "pairs": 50,
    }
    row = {
        "milliseconds": 1.5,
        "steps": 1000,
        "batch_size": 64,
        "compared": pairs if compared else None,
        "reason": reason,
    }
    return {"training": {"model": row}}


def test_tables_by_hand():
    assert macs_rows(report())[0] == ("forward pass", "1,000", "300")
    assert macs_rows(report())[-1] == ("together", "2,500", "800")
    assert bytes_rows(report())[2:] == [
        ("optimizer state", "200", "100", "50"), ("masks and indices", "0", "100", "100"), ("together", "1,000", "1,000", "350")
    ]  # fmt: skip


def test_sentences_by_hand():
    macs, held, time = savings_sentences(report(), latency())
    assert macs == (
        "On average over the run, a training step took 800 multiply-accumulates per sample, 0.32 of a dense step. 1 of 1 masked weights "
        "were stored compact by its end."
    )
    measured = report()
    measured["model"]["savings"]["mean_density"] = 0.1592
    assert savings_sentences(measured, None)[0].endswith(
        "On average over the steps, 0.159 of the masked positions were active."
    )
    assert "took 1,000 bytes at most, 1.00 of a dense run, and 350 at the end" in held
    assert "The median training step took 1.50 ms at batch 64 (1,000 steps" in time
    assert (
        "is faster than a dense step: it takes 0.35 of its time (95 % interval 0.30 to 0.40, 50 pairs in turns), 1.00 ms"
        in time
    )


def test_a_masked_weight_is_said_to_save_none():
    assert (
        "0 of 1 masked weights were stored compact by its end; a weight that is stored dense with a mask is multiplied whole"
        in (savings_sentences(report("masked: it was asked for"), None)[0])
    )


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.90, 0.94), "faster than a dense step"),
        ((0.90, 0.97), "not clearly faster or slower than a dense step"),
        ((0.97, 1.30), "not clearly faster or slower than a dense step"),
        ((1.06, 1.30), "slower than a dense step"),
    ],
)
def test_only_a_clear_ratio_is_called_faster(interval, said):
    assert f"is {said}" in savings_sentences(report(), latency(interval))[2]
    assert f"is {said}, {sum(interval) / 2:.2f} of its time" in savings_line(report(), latency(interval))


def test_without_a_comparison_the_reason_is_told():
    unknown = latency(compared=False, reason="this process made 3 steps, fewer than 30")
    assert savings_sentences(report(), unknown)[2].endswith(
        "not compared with a dense step: this process made 3 steps, fewer than 30."
    )
    assert savings_line(report(), unknown).endswith(
        "; time not compared with dense: this process made 3 steps, fewer than 30."
    )
    assert savings_line(report(), None) == (
        "Training: 0.32 of the multiply-accumulates and 1.00 of the memory of dense steps (weights, gradients, optimizer state, masks); "
        "time not compared with dense."
    )
    assert savings_sentences(report(), None)[2] == "Times of training steps were not measured."


def test_without_masks_or_counts_nothing_is_shown():
    assert savings_line(report(active=None), latency()) == "" and not is_shown(report(active=None))
    assert not is_shown({"model": {"layers": report()["model"]["layers"]}})
