"""What a report says of classes and exemplars, by hand, and what its forms refuse."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.errors import ReportError
from sparsify.figures.answers import damage_row
from sparsify.reports.damage import class_rows, damage_section, damage_sentences
from sparsify.reports.damage_form import Answers, Damage
from sparsify.reports.schema import check
from sparsify.reports.verdict import verdict

PICTURE = "iVBORw0KGgo="


def report(labels, dense, sparse, names=None):
    """A report with these answers, each with a probability of 0.9."""
    classes = 1 + max(map(max, (labels, dense, sparse)))
    tables = [np.full((len(labels), classes), 0.1 / (classes - 1)) for _ in range(2)]
    for table, chosen in zip(tables, (dense, sparse), strict=True):
        table[np.arange(len(labels)), chosen] = 0.9
    row = damage_row((tables[0], tables[0]), (tables[1], tables[1]), labels)
    return {"damage": row, "data": {"class_names": names, "classes": classes}}


def worse():
    """Of 40 samples of each of two classes, 12 of class 1 are lost."""
    labels = [0] * 40 + [1] * 40
    return report(labels, labels, [*labels[:68], *[0] * 12], ["cat", "dog"])


def test_the_sentences_of_a_class_that_lost():
    answered, worst, judged = damage_sentences(worse())
    assert answered.startswith(
        "The models answer 15.0 % of the 80 test samples differently (churn; 95 % interval 8.8 to 24.4)."
    )
    assert "The dense model has 15.0 % right that the sparse model has wrong (8.8 to 24.4)." in answered
    # Class 1 loses 30 points, all samples 15.
    assert worst.startswith(
        "The largest excess gap is that of class 1 (dog): its loss of recall exceeds the loss of accuracy by 15.0 points"
    )
    assert "may be chance" not in worst
    assert judged == "Recall is worse than the dense model's for 1 of 2 classes: 1 (dog)."


def test_the_rows_of_classes():
    zero, one = class_rows(worse())
    assert zero[:4] == ("0 (cat)", "40", "1.0000", "1.0000") and zero[6:] == ("0.0 %", "")
    assert (
        one[:4] == ("1 (dog)", "40", "1.0000", "0.7000")
        and one[4].startswith("-30.0 (")
        and one[5].startswith("+15.0 (")
    )
    assert one[6:] == ("30.0 %", "worse")
    assert [row[0] for row in class_rows(worse(), worst_first=True)] == ["1 (dog)", "0 (cat)"]


def test_nothing_that_is_clear():
    labels = [0, 1, 0, 1]
    answered, worst, judged = damage_sentences(report(labels, labels, [0, 1, 0, 0]))
    assert "25.0 %" in answered and worst.endswith("It may be chance: one of the classes always has the largest gap.")
    assert judged == "No class of 2 is clearly worse or better."


def test_exemplars_with_pictures_and_without():
    found = worse()
    bare = damage_section(found, {})
    assert bare is not None and not bare["pictured"] and bare["every"] is None
    assert bare["told"].startswith(
        "The dense model has 12 test samples right that the sparse model has wrong. These are the 12"
    )
    assert bare["listed"].rows[0] == ("68", "1 (dog)", "1 (dog)", "0 (cat)", "80")
    full = damage_section(found, {str(row["sample"]): PICTURE for row in found["damage"]["exemplars"]})
    assert full is not None and full["pictured"] and full["exemplars"][0]["picture"] == PICTURE
    assert damage_section({"model": {}}, {}) is None


def test_many_classes_are_shown_worst_first_and_folded():
    labels = list(range(30)) * 3
    section = damage_section(report(labels, labels, [9 if label == 4 else label for label in labels]), {})
    assert section is not None and len(section["shown"].rows) == 20 and len(section["every"].rows) == 30
    assert section["shown"].rows[0][0] == "4"


def test_the_verdict_calls_worse_what_the_corrected_test_does():
    """Eight of eight changes one way are clear for one class alone (p = 1/128), and not among 30."""
    samples = 40
    labels = [k for k in range(30) for _ in range(samples)]
    sparse = labels.copy()
    sparse[:8] = [1] * 8
    found = report(labels, labels, sparse)
    lost = {
        "lost": 8,
        "gained": 0,
        "class_lost": [8, *[0] * 29],
        "class_gained": [0] * 30,
        "class_samples": [samples] * 30,
    }
    part = {"accuracy": 1.0, "nonzeros": 1, "maskable": 1, "bytes": 1, "ece_after": 0, "nll_after": 0, "brier_after": 0}
    data = {"class_names": None, "samples": {"test": len(labels)}}
    whole = {**found, "flips": lost, "model": part, "dense": part, "data": data}
    assert "accuracy of class 0 by 20.00 points of its 40 samples, which may be chance" in verdict(whole, None)[-1]
    del whole["damage"]  # a run of an earlier version
    assert verdict(whole, None)[-1].endswith("accuracy of class 0 by 20.00 points of its 40 samples.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"worst_class": 5}, "worst_class 5 is none of the 2 classes"),
        ({"classes": []}, "classes"),
        ({"exemplars": [{"sample": "x"}]}, "exemplars.0"),
        ({"churn": "0.1"}, "churn"),
    ],
)
def test_a_damaged_row_is_refused(change, message, tmp_path):
    good = Damage.model_validate(tupled(worse()["damage"])).model_dump()
    check(Damage, good, tmp_path / "metrics.json")
    with pytest.raises(ReportError, match=message):
        check(Damage, {**good, **change}, tmp_path / "metrics.json")


def tupled(value):
    """As JSON gives it: lists in place of tuples."""
    if isinstance(value, dict):
        return {key: tupled(inner) for key, inner in value.items()}
    return [tupled(inner) for inner in value] if isinstance(value, (list, tuple)) else value


GOOD = {
    "fingerprint": "a", "labels": [0, 1], "answers": {"model": [0, 0]}, "confidence": {"model": [0.9, 0.8]}, "pictures": {"1": PICTURE},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"model": [0]}}, "1 values of model for 2 samples"),
        ({"answers": {"dense": [0, 1]}}, "answers and confidence should be those of the model"),
        ({"labels": [0, -1]}, "classes are numbered from 0"),
        ({"pictures": {"1": '"><script>'}}, "pictures"),
        ({"labels": []}, "labels"),
    ],
)
def test_a_damaged_file_of_answers_is_refused(change, message, tmp_path):
    check(Answers, GOOD, tmp_path / "answers.json")
    with pytest.raises(ReportError, match=message):
        check(Answers, {**GOOD, **change}, tmp_path / "answers.json")
