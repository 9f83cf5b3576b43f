"""What is said of selective prediction: better and worse only where the interval says so."""

from __future__ import annotations

import pytest

from sparsify.reports import verdict
from sparsify.reports.sections import selective
from sparsify.reports.selective import clearly_worse, is_measured, selective_sentences
from tests.reports.test_verdict import part as trained
from tests.reports.test_verdict import report as compared


def selection(samples, at_most=0.01, of=1000):
    return {"at_most": at_most, "samples": samples, "coverage": samples / of, "risk": 0.0, "threshold": 0.5}


def part(aurc=0.004, auroc=0.91, samples=900):
    found = {f"{key}_{when}": aurc for key in ("aurc", "excess_aurc") for when in ("before", "after")}
    rows = [selection(samples), selection(950, 0.05)]
    return {
        "method": "rigl", **found, "correctness_auroc_before": None, "correctness_auroc_after": auroc,
        "coverage_at_risk": {"before": rows, "after": rows}, "risk_coverage": {"after": {"coverage": [1.0], "risk": [0.1]}},
    }  # fmt: skip


def difference(key, low, high):
    return {key: {"figure": key, "difference": (low + high) / 2, "interval": [low, high], "resamples": 1000}}


@pytest.mark.parametrize(
    ("key", "ends", "what"),
    [
        ("aurc_after", (0.0001, 0.002), "worse"),
        ("aurc_after", (-0.002, -0.0001), "better"),
        ("aurc_after", (-0.0001, 0.002), "no clear difference"),
        ("correctness_auroc_after", (0.001, 0.02), "better"),
        ("correctness_auroc_after", (-0.02, -0.001), "worse"),
        ("correctness_auroc_after", (0.0, 0.0), "no clear difference"),
    ],
)
def test_a_figure_is_judged_by_its_interval(key, ends, what):
    report = {"model": part(0.004, 0.91), "dense": part(0.003, 0.93), "differences": difference(key, *ends)}
    _, judged = selective_sentences(report)
    shown = "AURC 0.00400 against 0.00300" if key == "aurc_after" else "AUROC of correctness 0.9100 against 0.9300"
    style = "+.5f" if key == "aurc_after" else "+.4f"
    interval = f"95 % interval of the difference {format(ends[0], style)} to {format(ends[1], style)}"
    assert judged == f"By the confidence of its answers, beside the dense model: {shown}, {what} ({interval})."
    assert clearly_worse(report) == ([f"{shown} ({interval})"] if what == "worse" else [])


def test_a_figure_without_an_interval_is_not_judged():
    keys, why = (
        ("aurc_after", "correctness_auroc_after"),
        "one of the models has 2 wrong answers, and an interval needs 20",
    )
    report = {"model": part(), "dense": part(), "differences": {key: {"figure": key, "reason": why} for key in keys}}
    assert selective_sentences(report)[1:] == [
        f"AURC and AUROC of correctness: not compared with the dense model, since {why}."
    ]
    assert clearly_worse(report) == []


def test_how_many_samples_can_be_answered_is_said():
    (alone,) = selective_sentences({"model": part(samples=931), "dense": None})
    assert alone == (
        "The 93.1 % of the test samples with the highest calibrated confidence (931) are answered with at most 1 % wrong."
    )
    (beside,) = selective_sentences({"model": part(samples=0), "dense": part(samples=950)})
    assert beside == (
        "No threshold on the calibrated confidence leaves at most 1 % wrong answers; the dense model answers 95.0 % at that risk."
    )


def choice(p, aurc=0.003):
    norms = {str(norm): 0.004 + 0.001 * (norm != 3) for norm in range(1, 9)}
    return {"p": p, "held_out": {"probability": 0.005, "norms": norms}, "aurc": aurc, "correctness_auroc": 0.9}


def test_another_confidence_is_named_where_held_out_samples_chose_it():
    report = {"model": {**part(0.004), "chosen_confidence": choice(3)}, "dense": None}
    assert selective_sentences(report)[1:] == [
        "On held-out samples, the highest centred logit divided by its 3-norm orders answers better than the calibrated probability: "
        "AURC 0.00400 against 0.00500. On the test samples it is 0.00300 against 0.00400."
    ]
    report["model"]["chosen_confidence"] = choice(None)
    assert selective_sentences(report)[1:] == []
    both = {"model": {**part(), "chosen_confidence": choice(3)}, "dense": {**part(), "chosen_confidence": choice(None)}}
    found = {label: cells for label, *cells in selective(both)}
    assert found["confidence that held-out samples chose"] == ["probability", "logit by its 3-norm"]
    assert found["AURC by it"] == ["0.00300", "0.00300"]


def test_the_table_has_both_models_and_both_times():
    rows = selective({"model": part(0.004, None), "dense": part(0.003)})
    found = {label: cells for label, *cells in rows}
    assert found["AURC, after"] == ["0.00300", "0.00400"]
    assert found["AUROC of correctness, after"] == ["0.9100", ""]
    assert found["answered with at most 5 % wrong, before"] == ["95.0 % (950)", "95.0 % (950)"]


def test_runs_of_earlier_versions_and_of_other_tasks_have_nothing():
    assert is_measured({"model": part(), "dense": None})
    assert not is_measured({"model": part(), "dense": {"method": "dense"}})
    assert selective_sentences({"model": {"figures": {"r2": 0.5}}}) == []


def test_the_verdict_names_what_is_clearly_worse():
    report = compared(trained(aurc_after=0.004), trained(aurc_after=0.003))
    found = {**report, "differences": difference("aurc_after", 0.0001, 0.002)}
    assert verdict(found, None)[3] == (
        "Worse than dense: AURC 0.00400 against 0.00300 (95 % interval of the difference +0.00010 to +0.00200)."
    )
    unclear = {**report, "differences": difference("aurc_after", -0.0001, 0.002)}
    assert verdict(unclear, None)[3] == "Worse than dense: nothing that was measured."
