"""Calibration heads of a file in integers: they compute in floating point, and are fitted again to the logits of the file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import sparsify as sp
from sparsify.calibration import fit
from sparsify.exporters import export, int8_forms
from sparsify.heads import HEADS, fitting
from sparsify.heads.masked import KEPT
from sparsify.parts.samples import TensorSamples
from sparsify.tasks import TASKS
from tests.cases import digits
from tests.exporters.test_int8_export import mlp, most_int8, trained

CALIBRATING = [kind for kind in fitting(TASKS["classification"]) if HEADS[kind].calibrates]


@pytest.mark.parametrize("kind", [kind for kind in CALIBRATING if kind != "temperature"])
def test_a_head_stays_in_floating_point_and_is_fitted_again(kind, tmp_path, monkeypatch):
    x, y = digits(1797)
    program = sp.Pipeline.parse(f"attach-calibration-head{{kind={kind} replace=true}}")(trained(mlp)).eval()
    log = fit(program, TensorSamples(x[1200:], y[1200:]))
    assert log.nll_before is not None and log.nll_after is not None and log.nll_after < log.nll_before
    monkeypatch.setattr(
        int8_forms, "times", lambda models, **_: {name: -most_int8(model) for name, (model, _) in models.items()}
    )
    monkeypatch.setattr(int8_forms, "time_layers", lambda *_, **__: {})
    given = {"calibration": [x[:256]], "labels": y[1200:], "form": "dense"}
    found = export(program, tmp_path / "m.onnx", inputs=[x[1200:]], precision="int8", **given).int8
    kept = kind == "masked-temperature"  # a file has no program that could be run on masked inputs
    assert found is not None and found.chosen.integers
    assert found.head.endswith(f"{log.temperature:.4f} {KEPT}" if kept else "fitted again")
    assert found.figures["nll_after"] <= found.figures["nll_before"] + 1e-3
    assert not [name for name in found.chosen.layers if "calibration" in name]
    stored = {value.name: numpy_helper.to_array(value) for value in onnx.load(tmp_path / "m.onnx").graph.initializer}
    changed = False
    for name in HEADS[kind].buffers:
        (array,) = (value for key, value in stored.items() if key.endswith(f"calibration.{name}"))
        before = program.tensor(f"calibration.{name}")
        assert array.dtype == "float32" and array.size == before.numel()
        changed = changed or not np.array_equal(array.reshape(before.shape), before.numpy())
    assert changed != kept
