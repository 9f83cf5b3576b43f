"""What is measured of a classifier, by hand."""

from __future__ import annotations

import pytest
import torch

from sparsify.figures.classifier import ood_quality, quality, selective_differences


def test_the_quality_of_two_samples():
    before, after = torch.tensor([[0.9, 0.1], [0.4, 0.6]]).double(), torch.tensor([[0.6, 0.4], [0.7, 0.3]]).double()
    found = quality(before, after, torch.tensor([0, 1]))
    assert (found["accuracy"], found["accuracy_after"], found["class_accuracy"]) == (1.0, 0.5, [1.0, 1.0])
    assert found["ece_before"] == pytest.approx(0.25)  # two bins of one sample: (0.1 + 0.4) / 2
    assert found["ece_after"] == pytest.approx((0.4 + 0.7) / 2)
    assert found["signed_gap_before"] == pytest.approx(-0.25) and found["signed_gap_after"] == pytest.approx(0.15)
    assert found["brier_before"] == pytest.approx((2 * 0.1**2 + 2 * 0.4**2) / 2)
    assert sum(row["count"] for row in found["reliability"]["after"]) == 2
    assert found["mce_before"] == pytest.approx(0.4) and found["mce_after"] == pytest.approx(0.7)


def test_the_answers_of_two_samples_by_their_confidence():
    before, after = torch.tensor([[0.9, 0.1], [0.4, 0.6]]).double(), torch.tensor([[0.6, 0.4], [0.7, 0.3]]).double()
    found = quality(before, after, torch.tensor([0, 1]))
    # After calibration, the surer of the two is wrong: risks 1 and 1/2. The best order has 0 and 1/2.
    assert (found["aurc_before"], found["aurc_after"]) == (0, 0.75)
    assert (found["excess_aurc_before"], found["excess_aurc_after"]) == (0, 0.5)
    assert (found["correctness_auroc_before"], found["correctness_auroc_after"]) == (None, 0)
    assert found["risk_coverage"]["after"] == {"coverage": [0.5, 1.0], "risk": [1.0, 0.5]}
    assert [row["at_most"] for row in found["coverage_at_risk"]["before"]] == [0.01, 0.05]
    assert found["coverage_at_risk"]["before"][0]["samples"] == 2
    none = {"at_most": 0.01, "samples": 0, "coverage": 0.0, "risk": 0.0, "threshold": None}
    assert found["coverage_at_risk"]["after"][0] == none


def test_the_curve_in_the_file_has_a_bounded_number_of_points():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(5000, 3, generator=generator).double().softmax(1)
    found = quality(table, table, torch.randint(3, (5000,), generator=generator))
    for curve in found["risk_coverage"].values():
        assert len(curve["coverage"]) == len(curve["risk"]) == 100 and curve["coverage"][-1] == 1


def test_differences_of_selective_prediction_have_intervals():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (300,), generator=generator)
    sure = torch.randn(300, 4, generator=generator).double()
    sure[torch.arange(300), labels] += 2
    model, dense = sure.softmax(1), (sure + 2 * torch.randn(300, 4, generator=generator)).softmax(1)
    found = selective_differences(model, dense, labels)
    assert list(found) == ["aurc_after", "correctness_auroc_after"]
    ours, theirs = (quality(table, table, labels) for table in (model, dense))
    for key, row in found.items():
        assert row["figure"] == key and row["resamples"] == 1000
        assert row["difference"] == pytest.approx(ours[key] - theirs[key], abs=1e-12)
    assert found["aurc_after"]["interval"][1] < 0


@pytest.mark.parametrize(("wrong", "kind"), [(19, "wrong"), (281, "right")])
def test_few_wrong_or_right_answers_have_no_interval(wrong, kind):
    labels = torch.zeros(300).long()
    tables = [torch.eye(2)[(torch.arange(300) < count).long()].double() for count in (wrong, 100)]
    for model, dense in (tables, tables[::-1]):
        found = selective_differences(model, dense, labels)
        assert list(found) == ["aurc_after", "correctness_auroc_after"]
        assert {row["reason"] for row in found.values()} == {
            f"one of the models has 19 {kind} answers, and an interval needs 20"
        }


def test_scores_of_eight_inside_and_six_outside():
    inside = torch.tensor([0.9, 0.8, 0.85, 0.6, 0.95, 0.7, 0.99, 0.4], dtype=torch.float64)
    outside = torch.tensor([0.5, 0.3, 0.65, 0.2, 0.75, 0.1], dtype=torch.float64)
    logits = [
        torch.stack([x, torch.zeros(len(x))], 1) for x in (inside, outside)
    ]  # the largest is x: every score rises with it
    found = ood_quality({"logits": logits[0], "ood_score": inside}, {"logits": logits[1], "ood_score": outside})
    assert found["samples"] == 6 and list(found["scores"]) == ["maximum probability", "entropy", "energy", "ood_score"]
    for row in found["scores"].values():
        assert row["auroc"] == pytest.approx(0.875)
        assert (row["aupr_in"], row["aupr_out"]) == (
            pytest.approx(0.920274, abs=1e-6),
            pytest.approx(0.863492, abs=1e-6),
        )
        assert (row["fpr_at_95_tpr"], row["fpr_at_95_tpr_outside"]) == (0.5, 0.375)
        assert (sum(row["histogram"]["inside"]), sum(row["histogram"]["outside"])) == (8, 6)
    shown = found["scores"]["ood_score"]["histogram"]
    assert (shown["low"], shown["high"], len(shown["inside"])) == (0.1, 0.99, 40)
    assert (shown["inside"][-1], shown["outside"][0]) == (1, 1)


def test_equal_scores_have_one_bin():
    same = {"logits": torch.zeros(3, 2)}
    assert ood_quality(same, same)["scores"]["energy"]["histogram"]["inside"] == [3]
    assert ood_quality(same, same)["scores"]["energy"]["auroc"] == 0.5
