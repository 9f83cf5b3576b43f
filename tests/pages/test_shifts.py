"""Rows and sentence of figures under shift, by hand."""

from __future__ import annotations

from sparsify.pages import shifts


def row(accuracy, confidence, **further):
    table = {"accuracy": accuracy, "confidence": confidence, "ece": abs(confidence - accuracy)}
    return {"before": {**table, "ece": 0.5}, "after": table, **further}


FOUND = {
    "unchanged": row(0.9, 0.875, accepted=0.5, accepted_risk=0.0),
    "noise": [row(0.9 - 0.1 * k, 0.875, accepted=0.25, accepted_risk=None) for k in range(1, 6)],
}


def test_the_short_table_has_three_severities():
    assert shifts.short_columns({"model": "a.onnx"}) == ("inputs", "accuracy", "confidence", "ECE")
    assert shifts.short_rows({"model": FOUND}) == [
        ("unchanged", "0.9000", "0.8750", "0.0250"),
        ("noise 1", "0.8000", "0.8750", "0.0750"),
        ("noise 3", "0.6000", "0.8750", "0.2750"),
        ("noise 5", "0.4000", "0.8750", "0.4750"),
    ]
    both = {"model": "a", "against": "b"}
    assert shifts.short_columns(both)[1:] == tuple(
        f"{name}, {title}" for title in "ab" for name in ("accuracy", "confidence", "ECE")
    )


def test_the_whole_table_has_every_figure_and_file():
    plain = {"unchanged": {"before": row(0.9, 0.8)["after"]}, "noise": [{"before": row(0.5, 0.8)["after"]}] * 5}
    found, titles = {"model": FOUND, "against": plain}, {"model": "a", "against": "b"}
    assert shifts.columns(found)[:5] == ("inputs", "severity", "file", "accuracy, before", "accuracy, after")
    assert shifts.columns(found)[-3:] == ("ECE, after", "accepted", "wrong of the accepted")
    shown = shifts.rows(found, titles)
    assert len(shown) == 12 and shown[0][:3] == ("unchanged", "", "a") and shown[0][-2:] == ("0.5000", "0.0000")
    assert shown[3] == ("noise", "1", "b", "0.5000", "", "0.8000", "", "0.3000", "", "", "")
    assert shown[2][-2:] == ("0.2500", "")
    page = str(shifts.plot(found, titles))
    assert page.startswith("<svg") and "a, noise of severity 5: accuracy 0.4000, confidence 0.8750, ECE 0.4750" in page


def test_the_sentence_names_the_largest_gap():
    assert shifts.sentence(FOUND) == (
        "Confidence exceeds accuracy most with noise of severity 5: mean confidence 0.8750, accuracy 0.4000; for the inputs as they are, "
        "0.8750 and 0.9000."
    )
    modest = {"unchanged": row(0.9, 0.8), "blur": [row(0.9, 0.7)] * 5}
    assert shifts.sentence(modest) == "The mean confidence is at most the accuracy at every measured shift."
    bold = {"unchanged": row(0.9, 0.95), "blur": [row(0.9, 0.7)] * 5}
    assert shifts.sentence(bold) == "The mean confidence exceeds the accuracy most for the inputs as they are."
