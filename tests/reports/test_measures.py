"""What is measured of one model, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.ir import trace
from sparsify.passes import Pipeline, recording
from sparsify.reports import covered, layers, paired, pass_rows, sizes
from sparsify.reports.measures import task_quality
from sparsify.tasks import Binary, Custom, Sequence
from tests.cases import CASES


def test_a_task_is_measured_as_trained_and_by_calibrated_probabilities():
    logits, targets = torch.tensor([2.0, -1.0, 4.0, -3.0]).double(), torch.tensor([1, 0, 0, 0])
    row = task_quality(Binary(), logits, {"logits": logits, "probabilities": (logits / 2).sigmoid()}, targets)
    assert row["figures_after"] == pytest.approx(Binary().figures(logits / 2, targets))
    assert (
        row["figures_after"]["nll"] < row["figures"]["nll"] and row["figures_after"]["auroc"] == row["figures"]["auroc"]
    )
    steps, right = torch.randn(3, 4, 5).double(), torch.randint(5, (3, 4))
    row = task_quality(Sequence(), steps, {"logits": steps, "probabilities": (steps / 3).softmax(-1)}, right)
    assert row["figures_after"] == pytest.approx(Sequence().figures(steps / 3, right))
    assert "figures_after" not in task_quality(Binary(), logits, {"logits": logits}, targets)


def test_sizes_and_layers_of_a_masked_program():
    program = CASES[0].trace()
    weights = {site.name: site for site in program.maskable()}
    assert sizes(program)["active"] == sizes(program)["maskable"] and sizes(program)["density"] == 1
    kept = list(weights)[-1]
    with recording() as record:
        masked = Pipeline.parse(f"insert-masks{{density=0.25 keep-dense={kept}}}")(program)
    found, rows = sizes(masked), {row["name"]: row for row in layers(masked, {"1.weight": 0.5, "3.weight": 0.75})}
    assert found["active"] == round(0.25 * found["maskable"]) == sum(row["active"] or 0 for row in rows.values())
    assert (rows[kept]["active"], rows[kept]["skip"]) == (None, "kept dense")
    assert found["macs"] == sum(row["macs_active"] for row in rows.values())
    assert [row["coverage"] for row in rows.values()] == [0.5, 0.75, None]
    assert covered(list(rows.values())) == (0.5 * 64 * 32 + 0.75 * 32 * 16) / (64 * 32 + 32 * 16)
    assert covered(layers(masked)) is None
    (row,) = pass_rows(record)
    assert row["left_alone"] == [[kept, "asked to stay dense"]] and kept not in row["changed"]


def test_a_weight_that_cannot_have_a_mask_is_not_counted_as_maskable():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.gain = nn.Linear(6, 4), nn.Parameter(torch.ones(1, 6))

        def forward(self, x):
            return self.fc(x * self.gain)

    found = sizes(trace(Scaled(), (torch.randn(2, 6),)))
    assert (found["maskable"], found["active"], found["params"], found["mostly_dense"]) == (24, 24, 34, None)


def test_the_interval_of_a_task_or_why_there_is_none():
    z = torch.randn(60, generator=torch.Generator().manual_seed(0))
    targets, close, far = z, {"mean": z + 0.1}, {"mean": z + 0.5 * z.flip(0)}

    def told(measure, model=close):
        task = Custom(criterion=lambda output, target: (output["mean"] - target).square().mean(), measure=measure)
        row = {"headline": "error", "figures": {"error": float((model["mean"] - targets).abs().mean())}}
        return paired(task, row, model, far, targets)

    found = told(lambda output, target: {"error": (output["mean"] - target).abs().mean()})
    low, high = found["interval"]
    assert (found["figure"], found["resamples"]) == ("error", 200)
    assert found["difference"] == pytest.approx(0.1 - float((0.5 * z).abs().mean()))
    assert low < found["difference"] < high < 0
    assert told(lambda output, target: {"error": 0.3})["reason"] == "it is another one when it is computed again"
    assert "NaN or infinite" in told(None, {"mean": torch.full_like(z, torch.nan)})["reason"]
    assert (
        "cannot compute it of some of the samples"
        in told(None, {"mean": z + 0.1, "scalar": torch.tensor(1.0)})["reason"]
    )
