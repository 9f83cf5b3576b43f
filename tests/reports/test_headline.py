"""The sentences under the headline, by hand: what got better, what got worse, and what a latency may claim."""

from __future__ import annotations

import pytest

from sparsify.reports import headline
from sparsify.reports.headline import LATENCY_ROWS, ROWS, sentences


def part(**changes):
    base = {
        "method": "rigl",
        "accuracy": 0.95,
        "accuracy_after": changes.get("accuracy", 0.95),
        **{"nll_before": 0.3, "nll_after": 0.2, "brier_after": 0.1},
        **{"ece_before": 0.05, "ece_after": 0.02, "adaptive_ece": 0.01, "classwise_ece": 0.01},
        "signed_gap_after": 0.0123,
        **{"aurc_after": 0.00321, "correctness_auroc_after": 0.91},
        **{"bytes": 1000, "maskable": 500, "nonzeros": 50, "density": 0.1, "macs": 4000},
        **{"params": 800, "model_density": 0.4375, "unknown": [], "mostly_dense": None},
        "forms": {},
        "calibration": {"kind": "temperature", "samples": 100, "nll_before": 0.3},
        "parity": {"largest_error": 3e-7, "tolerance": 1e-4, "decisions": 65},
    }
    return {**base, **changes}


def report(dense=None, flips=None, storage="dense", **changes):
    dense = None if dense is None else part(method="dense", density=1.0, nonzeros=500, **dense)
    return {"model": part(**changes), "dense": dense, "flips": flips, "seed": 3, "storage": storage}


def latency(speedup, interval, verdict, noise=(0.98, 1.02)):
    rows = [("dense", 2.0, 1.0, (1.0, 1.0)), ("model", 2.0 / speedup, speedup, interval)]
    timings = [
        {"name": name, "milliseconds": ms, "quartiles": (ms - 0.1, ms + 0.1), "speedup": ratio, "interval": limits}
        for name, ms, ratio, limits in rows
    ]
    return {"timings": timings, "noise": noise, "batch": 1, "threads": 1, "verdict": verdict}


def said(*arguments):
    return " ".join(sentences(*arguments))


def test_the_density_of_the_whole_model_and_what_is_not_known_are_said():
    assert "43.8 % of all the model's 800 weights are active" in said(report(), None)
    assert dict(headline(report(), None).rows)["density of the whole model"] == ("0.4375",)
    text = said(report(unknown=["aten.cdist", "aten.fft_rfft"], mostly_dense="Only 5 of 800."), None)
    assert "Only 5 of 800." in text and "not counted of aten.cdist, aten.fft_rfft, which may multiply" in text


def test_without_a_baseline_nothing_is_compared():
    assert headline(report(), None).columns == ("rigl",)
    assert [label for label, _ in headline(report(), None).rows] == [label for label, _, _ in ROWS]
    assert "dense" not in said(report(), None)


def test_with_a_baseline_and_latency_both_rows_are_there():
    rows = dict(headline(report({}), latency(4.0, (3.9, 4.1), "faster")).rows)
    assert rows["accuracy"] == ("0.9500", "0.9500") and rows["non-zeros of them"] == ("500", "50")
    assert rows["AURC, calibrated"] == ("0.00321", "0.00321")
    assert rows[LATENCY_ROWS[0]] == ("2.00 (1.90 to 2.10)", "0.500 (0.400 to 0.600)")
    assert rows[LATENCY_ROWS[1]] == ("1", "4.00 (3.90 to 4.10)")


@pytest.mark.parametrize(
    ("model", "dense", "words"),
    [
        (0.95, 0.95, "Accuracy is equal to that of the dense baseline"),
        (0.95, 0.96, "Accuracy is 1.00 points below that"),
        (0.95, 0.949, "Accuracy is 0.10 points above that"),
    ],
)
def test_accuracy_is_told_with_its_sign(model, dense, words):
    text = said(report({"accuracy": dense}, accuracy=model), None)
    assert words in text and "one seed: 3" in text


def test_decisions_that_changed_and_the_worst_class_are_told():
    flips = {
        "lost": 5,
        "gained": 2,
        "changed": 9,
        "class_lost": [1, 4],
        "class_gained": [2, 0],
        "class_samples": [50, 40],
    }
    text = said(report({}, flips), None)
    assert "Of 90 test samples, 5 that the dense model has right are now wrong, and 2 the other way round." in text
    assert "Class 1 loses most: 10.00 points." in text
    nothing = {**flips, "lost": 0, "class_lost": [0, 0]}
    assert "loses most" not in said(report({}, nothing), None)


def test_what_got_better_and_what_got_worse_are_apart():
    text = said(report({"nll_after": 0.25, "ece_after": 0.01}), None)
    assert "Better than the dense model: NLL 0.2000 against 0.2500." in text
    assert "Worse than the dense model: ECE 0.0200 against 0.0100." in text


def test_a_file_of_zeros_is_not_called_smaller():
    assert "not smaller than the dense one (1,000 bytes against 1,001): zeros are stored" in said(
        report({"bytes": 1001}), None
    )
    assert "3.0 times smaller" in said(report({"bytes": 3000}, storage="sparse"), None)
    assert "indices cost what zeros save" in said(report({"bytes": 1001}, storage="sparse"), None)


def test_calibration_that_did_not_help_is_told():
    assert "lowered the test ECE (0.0500 before, 0.0200 after)" in said(report(), None)
    assert "raised the test ECE (0.0500 before, 0.0600 after)" in said(report(ece_after=0.06), None)
    assert "1.23 points off on average, over-confident" in said(report(), None)
    assert "under-confident" in said(report(signed_gap_after=-0.01), None)
    assert "changes decisions" not in said(report(), None)
    assert "accuracy is 0.9400 by the calibrated probabilities, not 0.9500" in said(report(accuracy_after=0.94), None)


def test_latency_claims_no_more_than_its_verdict():
    text = said(report({}), latency(1.01, (0.99, 1.03), "no difference beyond noise"))
    assert "1.01 (0.99 to 1.03) times as fast as the dense file: no difference beyond noise" in text
    assert "Zeros in a dense file do not make a stock runtime faster" in text
    faster = said(report({}), latency(4.0, (3.9, 4.1), "faster"))
    assert "faster (the dense file against itself: 0.98 to 1.02)" in faster and "Zeros in a dense file" not in faster
    grouped = said(report({}, forms={"a": "grouped", "b": "too dense"}), latency(0.9, (0.8, 0.95), "slower"))
    assert "1 weight(s) are small dense blocks" in grouped and "Zeros in a dense file" not in grouped


def test_a_figure_that_is_not_defined_has_an_empty_cell():
    rows = dict(headline(report({}, correctness_auroc_after=None), None).rows)
    assert rows["AUROC of correctness, calibrated"] == ("0.9100", "")


def against(auroc, own=None):
    row = {"auroc": auroc, "fpr_at_95_tpr": 0.25}
    own_row = {} if own is None else {"ood_score": {"auroc": own, "fpr_at_95_tpr": 0.125}}
    return {"letters": {"samples": 1200, "scores": {"maximum probability": row, **own_row}}}


def test_auroc_is_a_row_a_set_and_a_score():
    plain = dict(headline(report({"ood": against(0.9)}, ood=against(0.91)), None).rows)
    assert plain["AUROC against letters, maximum probability"] == ("0.9000", "0.9100")
    assert not any("ood_score" in label for label in plain)
    own = dict(headline(report({"ood": against(0.9)}, ood=against(0.91, 0.95)), None).rows)
    assert own["AUROC against letters, ood_score"] == ("", "0.9500")


def test_how_outsiders_are_told_apart_is_said_with_what_slips_through():
    text = said(report({"ood": against(0.9)}, ood=against(0.91, 0.95), ood_threshold=0.43), None)
    assert (
        "1,200 inputs of letters are told from test inputs with AUROC 0.9500 by ood_score, 0.9100 by maximum probability; the dense model "
        "has 0.9000 by maximum probability. Where 95 % of the test inputs are accepted, so are 12.5 % of them." in text
    )
    assert "95 % of the validation samples have an ood_score of at least 0.4300" in text
    alone = said(report(ood=against(0.91)), None)
    assert "AUROC 0.9100 by maximum probability. Where" in alone and "ood_score" not in alone


@pytest.mark.parametrize(
    ("after", "text", "shown"),
    [
        ({"auroc": 0.9, "nll": 0.3}, "On the test samples: nll 0.3000 after, 0.5000 before.", ["auroc", "nll", "nll, calibrated"]),
        ({"auroc": 0.9, "nll": 0.50001}, "It changes no figure of the test samples.", ["auroc", "nll"]),
        (None, "0.0200 after.", ["auroc", "nll"]),
    ],
)  # fmt: skip
def test_what_calibration_changes_of_a_task_on_the_test_samples(after, text, shown):
    known = {
        "figures": {"auroc": 0.9, "nll": 0.5},
        "headline": "auroc",
        "lower_is_better": ["nll"],
        "figures_after": after,
    }
    fitted = {"kind": "temperature", "samples": 100, "ece_before": 0.1, "ece_after": 0.02}
    given = report(calibration=fitted, **known)
    assert text in said(given, None)
    assert [label for label, _ in headline(given, None).rows][: len(shown)] == shown
