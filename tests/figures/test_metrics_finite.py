"""No metric takes NaN or infinity for a value: not finite is not best, wherever it comes from."""

from __future__ import annotations

import inspect

import pytest
import torch

from sparsify.errors import TrainingError
from sparsify.figures import metrics

LABELS = torch.tensor([0, 1, 2, 1])
TABLE = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]])
SCORES, HIT = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([True, False, True, True])
CALLS = {
    "accuracy": lambda x: metrics.accuracy(x, LABELS), "class_accuracy": lambda x: metrics.class_accuracy(x, LABELS),
    "flips": lambda x: metrics.flips(TABLE, x, LABELS), "nll": lambda x: metrics.nll(x, LABELS),
    "brier": lambda x: metrics.brier(x, LABELS), "reliability": lambda x: metrics.reliability(x, LABELS),
    "bin_by_width": lambda x: metrics.bin_by_width(x[:, 0], HIT, bins=5), "ece": lambda x: metrics.ece(x, LABELS),
    "adaptive_ece": lambda x: metrics.adaptive_ece(x, LABELS), "classwise_ece": lambda x: metrics.classwise_ece(x, LABELS),
    "mce": lambda x: metrics.mce(x, LABELS), "debiased_l2": lambda x: metrics.debiased_l2(x, LABELS),
    "debiased_square": lambda x: metrics.debiased_square(x[:, 0], HIT, bins=2),
    "equal_mass_error": lambda x: metrics.equal_mass_error(x[:, 0], HIT, bins=2),
    "top_label": lambda x: metrics.top_label(x, LABELS),
    "signed_gap": lambda x: metrics.signed_gap(x, LABELS),
    "auroc": lambda x: metrics.auroc(SCORES, x[:, 0]), "aupr": lambda x: metrics.aupr(x[:, 0], SCORES),
    "fpr_at_95_tpr": lambda x: metrics.fpr_at_95_tpr(x[:, 0], SCORES),
    "fpr_at_95_tpr_outside": lambda x: metrics.fpr_at_95_tpr_outside(SCORES, x[:, 0]),
}  # fmt: skip


def test_every_metric_is_tried():
    public = {
        name for name, value in inspect.getmembers(metrics, inspect.isfunction) if value.__module__ == metrics.__name__
    }
    assert {name for name in public if not name.startswith("_")} - {"finite", "doubles"} == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(name, value):
    CALLS[name](TABLE)
    broken = TABLE.clone()
    broken[2, 0] = value
    with pytest.raises(TrainingError, match=r"1 of \d+ .* are NaN or infinite"):
        CALLS[name](broken)


def test_an_excluded_class_is_no_fault_of_scores_that_are_only_ordered():
    scores = TABLE.clone()
    scores[:, 2] = -torch.inf
    assert metrics.accuracy(scores, LABELS) == 0.75
    with pytest.raises(TrainingError, match="3 of 12"):
        metrics.accuracy(torch.where(torch.arange(4)[:, None] == 1, -torch.inf, TABLE), LABELS)
