"""Tables of prediction sets, by hand."""

from __future__ import annotations

from sparsify.pages.sets import figure_rows, size_rows

SETS = {
    "coverage": 0.9, "interval": [0.85, 0.94], "mean_size": 1.25, "median_size": 1.0, "singletons": 0.75, "empty": 0.0,
    "sizes": [{"size": 1, "samples": 1500, "coverage": 0.95}, {"size": 2, "samples": 500, "coverage": 0.75}],
}  # fmt: skip
NOTHING = {"coverage": 0.0, "coverage_interval": [0.0, 0.01], "risk": None, "risk_interval": None}


def test_a_figure_that_a_file_lacks_is_left_empty():
    assert figure_rows([{}, {"prediction_set": None}]) == []
    assert figure_rows([{"prediction_set": SETS}, {"accept": NOTHING}], intervals=True) == [
        ("coverage of prediction sets", "0.9000 (0.8500 to 0.9400)", ""),
        ("mean size of prediction sets", "1.250", ""),
        ("median size of prediction sets", "1", ""),
        ("sets of one class", "0.7500", ""),
        ("empty sets", "0.0000", ""),
        ("share of accepted answers", "", "0.0000 (0.0000 to 0.0100)"),
        ("share of wrong answers among the accepted", "", ""),
    ]
    assert figure_rows([{"prediction_set": SETS}], [("prediction_set", "coverage")]) == [
        ("coverage of prediction sets", "0.9000")
    ]


def test_coverage_by_size():
    assert size_rows({"a": {"prediction_set": SETS}, "b": {}}) == [
        ("a", "1", "1,500", "0.9500"),
        ("a", "2", "500", "0.7500"),
    ]
