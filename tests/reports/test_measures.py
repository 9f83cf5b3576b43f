"""What is measured of one model, by hand."""

from __future__ import annotations

import pytest
import torch

import sparsify as sp
from sparsify.passes import Pipeline, recording
from sparsify.reports import covered, layers, pass_rows, quality, sizes
from tests.cases import CASES


def test_the_quality_of_two_samples():
    before, after = torch.tensor([[0.9, 0.1], [0.4, 0.6]]).double(), torch.tensor([[0.6, 0.4], [0.7, 0.3]]).double()
    found = quality(before, after, torch.tensor([0, 1]))
    assert (found["accuracy"], found["accuracy_after"], found["class_accuracy"]) == (1.0, 0.5, [1.0, 1.0])
    assert found["ece_before"] == pytest.approx(0.25)  # two bins of one sample: (0.1 + 0.4) / 2
    assert found["ece_after"] == pytest.approx((0.4 + 0.7) / 2)
    assert found["signed_gap_before"] == pytest.approx(-0.25) and found["signed_gap_after"] == pytest.approx(0.15)
    assert found["brier_before"] == pytest.approx((2 * 0.1**2 + 2 * 0.4**2) / 2)
    assert sum(row["count"] for row in found["reliability"]["after"]) == 2


def test_sizes_and_layers_of_a_masked_program():
    program = sp.trace(CASES[0].build(), CASES[0].args)
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
