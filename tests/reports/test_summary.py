"""The table of a grid: means, deviations and paired differences by hand, and what may be said of them."""

from __future__ import annotations

import json

import pytest

from sparsify.figures.intervals import Difference
from sparsify.reports.summary import CellResult, mean_curve, summarise, verdict
from sparsify.reports.summary_measures import figures, measure, unknown


def cell(name, seed, accuracy, *, base="dense", sparsity: float | None = 0.9, evaluations=100.0, accuracies=(), **more):
    history = [
        {"step": 10 * (index + 1), "evaluations": 20.0 * (index + 1), "val_accuracy": value, "val_loss": 1 - value}
        for index, value in enumerate(accuracies)
    ]
    found = {"accuracy": accuracy, "evaluations": evaluations, "steps": 100.0, **more}
    bases = () if base is None else tuple(base.split(" + "))
    return CellResult(name, bases, sparsity, seed, found, history)


SCORE = {"auroc": 0.6, "fpr_at_95_tpr": 0.5, "histogram": {"low": 0.0, "high": 1.0, "inside": [1]}}
DENSE = [cell("dense", seed, value, base=None, sparsity=None) for seed, value in enumerate((0.90, 0.91, 0.95))]
RIGL = [cell("rigl", seed, value) for seed, value in enumerate((0.88, 0.90, 0.94))]
CIGL = [
    cell("cigl(rigl)", seed, value, base="rigl", evaluations=200.0) for seed, value in enumerate((0.89, 0.91, 0.95))
]


def test_rows_hold_mean_deviation_and_paired_difference():
    found = summarise([*DENSE, *RIGL, *CIGL])
    assert [(row.name, row.base, row.n) for row in found.rows] == [
        ("dense", None, 3), ("rigl", "dense", 3), ("cigl(rigl)", "rigl", 3)
    ]  # fmt: skip
    dense, rigl, cigl = found.rows
    assert dense.spreads["accuracy"].mean == pytest.approx(0.92) and dense.differences == {}
    # Deviation of 0.90, 0.91, 0.95 around 0.92: sqrt((4 + 1 + 9) 1e-4 / 2).
    assert dense.spreads["accuracy"].deviation == pytest.approx((14e-4 / 2) ** 0.5)
    # Differences -0.02, -0.01, -0.01: mean -0.013333, deviation 0.0057735, reach 4.30265 * 0.0057735 / sqrt(3) = 0.0143422.
    difference = rigl.differences["accuracy"]
    assert difference.mean == pytest.approx(-0.04 / 3) and difference.deviation == pytest.approx(0.0057735, abs=1e-7)
    assert difference.interval == pytest.approx((-0.0276755, 0.0010088), abs=1e-6)
    assert verdict("accuracy", difference) == "not clear"
    # The wrapper gains 0.01 on every seed, at twice the evaluations.
    assert cigl.differences["accuracy"].mean == pytest.approx(0.01)
    assert verdict("accuracy", cigl.differences["accuracy"]) == "better"
    assert (
        cigl.differences["evaluations"].mean == 100
        and verdict("evaluations", cigl.differences["evaluations"]) == "higher"
    )


def test_a_row_of_two_bases_is_compared_with_each():
    both = [cell("cigl(rigl)", seed, 0.9 + seed / 100, base="rigl + dense") for seed in (0, 1, 2)]
    rows = [row for row in summarise([*DENSE, *RIGL, *both]).rows if row.name == "cigl(rigl)"]
    assert [row.base for row in rows] == ["rigl", "dense"] and rows[0].spreads == rows[1].spreads
    # 0.90, 0.91, 0.92 less 0.88, 0.90, 0.94, and less 0.90, 0.91, 0.95.
    assert [row.differences["accuracy"].mean for row in rows] == pytest.approx([0.01 / 3, -0.01])


def test_coverage_is_shown_and_not_judged():
    rigl, dst_ee = (
        [cell(name, seed, 0.9, base=base, coverage=value + seed / 1000) for seed in (0, 1)]
        for name, base, value in (("rigl", None, 0.2), ("dst-ee", "rigl", 0.3))
    )
    found = summarise([*rigl, *dst_ee])
    assert "coverage" in found.shown()
    assert verdict("coverage", found.rows[1].differences["coverage"]) == "higher"
    assert not any("coverage" in sentence for sentence in found.sentences())


def test_pairs_are_of_equal_seeds_and_the_others_count_for_the_mean_alone():
    rows = summarise([DENSE[0], DENSE[2], *RIGL]).rows
    difference = rows[1].differences["accuracy"]
    assert rows[1].n == 3 and difference.n == 2 and difference.mean == pytest.approx((-0.02 - 0.01) / 2)
    assert "n = 2" in summarise([DENSE[0], DENSE[2], *RIGL]).table(["accuracy"]).rows[1][1][3]
    alone = summarise([DENSE[0], RIGL[1]]).rows[1]
    assert alone.differences == {} and alone.reach is None


def test_cells_of_equal_sparsity_are_paired_and_a_base_without_masks_stands_for_all():
    other = [cell("rigl", 0, 0.5, sparsity=0.5), cell("cigl(rigl)", 0, 0.6, base="rigl", sparsity=0.5)]
    rows = {(row.name, row.sparsity): row for row in summarise([*DENSE, *RIGL, *CIGL, *other]).rows}
    assert rows["cigl(rigl)", 0.5].differences["accuracy"].mean == pytest.approx(0.1)
    assert rows["rigl", 0.5].differences["accuracy"].mean == pytest.approx(0.5 - 0.9)
    order = [row.sparsity for row in summarise([*other, *RIGL, *DENSE]).rows]
    assert order == [None, 0.5, 0.5, 0.9]


def test_a_verdict_knows_which_way_is_better():
    up, down = Difference(0.1, 0.01, 3, (0.05, 0.15)), Difference(-0.1, 0.01, 3, (-0.15, -0.05))
    for key in ("accuracy", "auroc.svhn", "ood.svhn.scores.plain.aupr_in"):
        assert (verdict(key, up), verdict(key, down)) == ("better", "worse"), key
    for key in ("nll_after", "ece_before", "fpr_at_95_tpr"):
        assert (verdict(key, up), verdict(key, down)) == ("worse", "better"), key
    assert (verdict("macs", up), verdict("macs", down)) == ("higher", "lower")
    assert verdict("accuracy", Difference(0.1, None, 1, None)) == "one pair"
    assert verdict("accuracy", Difference(0.1, 0.2, 3, (-0.1, 0.3))) == "not clear"


def test_every_figure_of_a_run_is_taken():
    model = {
        "method": "moon(rigl)", "accuracy": 0.9, "bytes": 5, 
        "ood": {"svhn": {"samples": 7, "scores": {"plain": SCORE, "ood_score": {**SCORE, "auroc": 0.8}}}}, "layers": [1], "flag": True,
        "class_accuracy": [0.5], "calibration": {"temperature": 2.0}, "counts": {"steps": 30, "probes": 12, "rounds": 2},
    }  # fmt: skip
    assert figures(model) == {
        "accuracy": 0.9, "bytes": 5.0, "ood.svhn.samples": 7.0,
        "ood.svhn.scores.plain.auroc": 0.6, "ood.svhn.scores.plain.fpr_at_95_tpr": 0.5,
        "ood.svhn.scores.ood_score.auroc": 0.8, "ood.svhn.scores.ood_score.fpr_at_95_tpr": 0.5,
        "auroc.svhn": 0.8, "fpr.svhn": 0.5,  # by the method's own score
        "steps": 30.0, "probes": 12.0, "rounds": 2.0, "evaluations": 42.0,
    }  # fmt: skip
    del model["ood"]["svhn"]["scores"]["ood_score"]
    assert figures(model)["auroc.svhn"] == 0.6
    assert unknown("auroc.svhn") and not unknown("accuracy") and not unknown("ood.svhn.scores.plain.auroc")
    assert measure("auroc.svhn").label == "AUROC svhn"


def test_passes_that_were_counted_one_by_one_go_before_steps_and_probes():
    counts = {"steps": 30, "probes": 12}
    assert figures({"counts": counts})["evaluations"] == 42 and figures({"counts": {"steps": 30}})["evaluations"] == 30
    assert figures({"counts": {**counts, "forwards": 62, "backwards": 42}})["evaluations"] == 52


def test_figures_of_the_unknown_are_shown_before_the_costs():
    cells = [cell("dense", seed, 0.9, base=None, sparsity=None, auroc=0.7 + seed / 10) for seed in (0, 1)]
    assert summarise(cells).shown() == ["accuracy", "auroc", "evaluations", "steps"]
    assert summarise(cells).shortlist() == ["accuracy", "auroc"]
    assert summarise([*DENSE, *RIGL, *CIGL]).shortlist() == ["accuracy", "evaluations"]
    lost = [cell("rigl", seed, 0.9, max_excess_gap=0.02, churn=0.1 + seed / 50) for seed in (0, 1)]
    found = summarise([*DENSE[:2], *lost])
    assert {"max_excess_gap", "churn"} <= {*found.shortlist()}
    assert {"largest excess gap", "churn"} <= {*found.brief().columns}


def test_figures_under_shift_are_means_over_severities():
    steps = [{"before": {}, "after": {"accuracy": 0.9 - k / 10, "confidence": 0.9, "ece": k / 100}} for k in range(5)]
    found = figures({"counts": {"steps": 4}, "shift": {"unchanged": steps[0], "noise": steps, "blur": steps[:1] * 5}})
    assert found["shift.noise.accuracy"] == pytest.approx(0.7) and found["shift.noise.ece"] == pytest.approx(0.02)
    assert found["shift.blur.accuracy"] == pytest.approx(0.9)
    cells = [cell("dense", seed, 0.9, base=None, sparsity=None, **found) for seed in (0, 1)]
    assert {"shift.noise.accuracy", "shift.noise.ece"} <= {*summarise(cells).shown()}
    assert measure("shift.noise.ece").label == "ECE under noise" and measure("shift.noise.ece").better == -1


def test_a_figure_that_a_cell_lacks_is_not_averaged():
    (row,) = summarise([cell("dense", 0, 0.9, base=None, sparsity=None, auroc=0.7), DENSE[1]]).rows
    assert "auroc" not in row.spreads and row.spreads["accuracy"].n == 2


def test_how_soon_the_accuracy_of_the_base_is_reached():
    # The base ends at 0.8, which it first reaches at its second row (step 20, 40 evaluations).
    base = [cell("rigl", seed, 0.8, accuracies=(0.5, 0.8, 0.7, 0.8)) for seed in (0, 1)]
    soon = cell("agent(rigl)", 0, 0.9, base="rigl", accuracies=(0.81, 0.9, 0.9, 0.9))
    never = cell("agent(rigl)", 1, 0.7, base="rigl", accuracies=(0.1, 0.2, 0.3, 0.7))
    reach = summarise([*base, soon, never]).rows[1].reach
    assert reach is not None and (reach.reached, reach.of) == (1, 2)
    assert reach.steps is not None and reach.steps.mean == 0.5 and reach.evaluations == reach.steps
    assert summarise([*base, never]).reaches().rows == (("agent(rigl)", ("0.9", "rigl", "0 of 1", "", "")),)


def test_curves_are_means_as_far_as_the_shortest():
    cells = [cell("rigl", 0, 0.8, accuracies=(0.5, 0.8, 0.9)), cell("rigl", 1, 0.8, accuracies=(0.7, 0.9))]
    assert mean_curve(cells, lambda row: row["step"], "val_accuracy") == ([10, 20], pytest.approx([0.6, 0.85]))


def test_the_table_and_the_sentences_say_the_same():
    found = summarise([*DENSE, *RIGL, *CIGL])
    table = found.table(found.shown())
    assert table.columns == ("sparsity", "n", "base", "accuracy", "evaluations", "steps")
    rows = dict(table.rows)
    assert rows["dense"][3] == "0.9200 ± 0.0265" and rows["cigl(rigl)"][4] == "200 ± 0\n+100"
    assert rows["rigl"][3] == "0.9067 ± 0.0306\n-0.0133 [-0.0277, +0.0010]"
    assert rows["cigl(rigl)"][3].startswith("0.9167 ± 0.0306\n+0.0100 [+0.0100, +0.0100] better")
    assert dict(found.brief().rows)["cigl(rigl) 0.9\n- rigl"][0] == "0.917 ± 0.031\n+0.010 better"
    trust, clear = found.sentences()
    assert trust.startswith("1 of 2 differences") and clear.startswith(
        "cigl(rigl) at sparsity 0.9: accuracy better than rigl's by 0.0100"
    )
    assert json.loads(json.dumps(found.to_dict()))["rows"][1]["figures"]["accuracy"]["difference"]["n"] == 3


def test_one_seed_says_nothing():
    found = summarise([DENSE[0], RIGL[0]])
    assert found.rows[1].differences["accuracy"].interval is None
    assert found.sentences() == [
        "With one seed, there is no interval, and no row is called better or worse. Use three seeds or more."
    ]
    assert found.table(["accuracy"]).rows[1][1][3] == "0.8800\n-0.0200 one seed, no interval"
