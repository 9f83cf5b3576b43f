"""What a run measures and says of prediction sets and accepted answers, by hand."""

from __future__ import annotations

import torch

from sparsify.figures.intervals import share_interval
from sparsify.reports.sets import asked, beside_probabilities, by_class, headline_rows, is_measured, set_sentences

P = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9], [0.3, 0.7]])
Y = torch.tensor([0, 1, 1, 1])
OUTPUTS = {
    "prediction_set": torch.tensor([[1, 0], [1, 1], [0, 1], [1, 0]], dtype=torch.bool),
    "accept": torch.tensor([1, 1, 1, 0], dtype=torch.bool),
}


def model(**changes):
    heads = [
        {"head": "lac:0.9", "outputs": ["prediction_set"], "values": {"coverage": 0.9}},
        {"head": "accept:0.05:0.1", "outputs": ["accept"], "values": {"risk": 0.05, "doubt": 0.1}},
    ]
    return {**beside_probabilities(OUTPUTS, P, Y), "calibration": {"heads": heads}, **changes}


def test_outputs_are_measured_as_flags_or_as_numbers():
    found = beside_probabilities(OUTPUTS, P, Y)
    assert (found["prediction_set"]["coverage"], found["prediction_set"]["mean_size"]) == (0.75, 1.25)
    assert found["prediction_set"]["class_coverage"] == [1.0, 2 / 3]
    assert (found["accept"]["coverage"], found["accept"]["risk"]) == (0.75, 1 / 3)
    assert beside_probabilities({name: value.double() for name, value in OUTPUTS.items()}, P, Y) == found


def test_an_output_that_holds_no_flags_is_left_out():
    assert beside_probabilities({}, P, Y) == {}
    others = {"prediction_set": OUTPUTS["prediction_set"][:, :1], "accept": torch.tensor([0.2, 1, 0, 1])}
    assert beside_probabilities(others, P, Y) == {}


def test_what_was_asked_for_stands_in_the_labels():
    assert asked(model(), "prediction_set", "coverage") == 0.9 and asked({}, "accept", "risk") is None
    assert headline_rows([model(), {"calibration": None}]) == [
        ("coverage of prediction sets, asked for: 0.9", ("0.7500", "")),
        ("mean size of prediction sets", ("1.250", "")),
        ("share of accepted answers", ("0.7500", "")),
        ("share of wrong answers among the accepted, asked for: at most 0.05", ("0.3333", "")),
    ]
    unknown = model(calibration={"heads": [{"head": "mine", "outputs": ["accept"], "values": {}}]})
    assert [label for label, _ in headline_rows([unknown])][3] == "share of wrong answers among the accepted"


def test_sentences():
    sets, wrong = ([f"{100 * end:.1f}" for end in share_interval(*counts)] for counts in ((3, 4), (1, 3)))
    report = {"model": model(), "dense": None, "data": {"class_names": ["cat", "dog"]}}
    assert is_measured(report) and not is_measured({"model": {}, "dense": None})
    assert set_sentences(report) == [
        f"Prediction sets hold the right class of 75.0 % (95 % interval {sets[0]} to {sets[1]} %) of the test samples; 90 % were asked "
        f"for. Their mean size is 1.250; 75.0 % hold one class, 0.0 % none.",
        f"Accepted are the answers to 75.0 % of the test samples, of which 33.3 % (95 % interval {wrong[0]} to {wrong[1]} %) are wrong; "
        f"of all answers, 25.0 % are. At most 5 % were asked for.",
    ]
    none = beside_probabilities({"accept": torch.zeros(4, dtype=torch.bool)}, P, Y)
    assert set_sentences({"model": none, "dense": model()}) == [
        "No answer to a test sample is accepted. The dense model accepts 75.0 %, of which 33.3 % are wrong."
    ]
    assert by_class(report, {"model": "rigl"}) == [("0 cat", "1.0000"), ("1 dog", "0.6667")]
