"""Which of several files becomes the int8 file, and its calibration head."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from sparsify.exporters import int8, int8_forms
from sparsify.exporters.int8_head import Refit, refit_head
from sparsify.exporters.int8_samples import Wanted
from sparsify.heads import HEADS, Fitted, Temperature, register
from tests.exporters.grouped_mlp import arrays, images, kinds, load, run, samples, with_dense_layer


def timed(monkeypatch, *milliseconds, layers=None):
    """Trials that take these times, file by file."""
    order = iter(milliseconds)
    for module in (int8_forms, int8):  # the second times what is left where forms were refused
        monkeypatch.setattr(module, "times", lambda models, **_: {name: next(order) for name in models})
    monkeypatch.setattr(int8_forms, "time_layers", lambda models, timed, **_: layers or {})


def test_the_fastest_of_the_trials_comes_first(monkeypatch):
    timed(monkeypatch, 6.0, 5.0, 3.0, 4.0, 2.0, 1.0)
    model = with_dense_layer()
    found = int8_forms.quantize({"grouped": model}, samples(model, images(64)[0])).found
    assert [trial.name for trial, _ in found] == [
        "grouped, dense and grouped layers int8, 7-bit weights", "grouped, dense and grouped layers int8",
        "grouped, grouped layers int8", "grouped, grouped layers int8, 7-bit weights", "grouped, dense layers int8", "grouped, fp32",
    ]  # fmt: skip
    assert [trial.integers for trial, _ in found] == [3, 3, 2, 2, 1, 0]
    assert "QLinearMatMul" in kinds(found[0][1])
    assert dict(found[1][0].layers) == {
        "first.weight": "int8 grouped", "second.weight": "int8 grouped", "eye": "int8 dense", "head.weight": "fp32 dense",
    }  # fmt: skip
    reduced = dict.fromkeys(("first.weight", "second.weight"), "int8 grouped, 7-bit weights")
    assert found[0][0].layers == {**found[1][0].layers, **reduced}


def test_trials_of_single_layers_propose_a_mixed_file(monkeypatch):
    layers = {
        "first.weight": {"fp32 grouped": 2.0, "int8 grouped": 1.0},
        "second.weight": {"fp32 grouped": 1.0, "int8 grouped": 2.0},
    }
    timed(monkeypatch, 6.0, 5.0, 4.0, 4.0, 3.0, 3.0, 1.0, 2.0, layers=layers)
    plain = with_dense_layer()
    (first, model), (second, _), *_ = int8_forms.quantize({"grouped": plain}, samples(plain, images(64)[0])).found
    assert (first.name, second.name) == ("mixed, by layer", "mixed, by layer, 7-bit weights")
    assert [first.layers[name] for name in ("first.weight", "second.weight", "eye")] == [
        "int8 grouped", "fp32 grouped", "fp32 dense",
    ]  # fmt: skip
    assert kinds(model).count("QLinearMatMul") == 1


def test_layers_that_are_faster_dense_in_int8_are_lowered_again_without_them(monkeypatch):
    layers = {"second.weight": {"fp32 grouped": 2.0, "int8 dense": 1.0}}
    timed(monkeypatch, *range(12), layers=layers)
    asked = []
    given = samples(load(1), images(64)[0])
    int8_forms.quantize({"grouped": load(1)}, given, lower=lambda kept: asked.append(kept) or load(1))
    assert asked == [("second.weight",)]


def test_a_fast_form_that_disagrees_is_passed_over(monkeypatch):
    timed(monkeypatch, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
    model, (x, _) = with_dense_layer(), images(64)
    monkeypatch.setattr(int8_forms, "write_grouped_int8", lambda given, *_, **__: broken(given))
    _, result = int8.int8_file({"grouped": model}, samples(model, x))
    assert result.chosen.name == "grouped, dense layers int8" and len(result.trials) == 6
    assert result.agreed > 0.95 * result.decisions and result.largest_error < 0.1
    assert result.head == "kept: no labels to fit it on" and not result.figures


def test_a_file_whose_fastest_form_is_fp32_keeps_its_head(monkeypatch):
    timed(monkeypatch, 1.0, 6.0, 5.0, 4.0, 3.0, 2.0)
    model, (x, y) = with_dense_layer(), images(64)
    _, result = int8.int8_file({"grouped": model}, samples(model, x, y))
    assert result.chosen.integers == 0 and result.head == "kept: the file computes in fp32"
    assert result.agreed == result.decisions == 64 and result.largest_error < 1e-6


def test_where_no_int8_form_agrees_the_file_is_fp32_and_every_form_has_its_reason(monkeypatch):
    timed(monkeypatch, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
    model, (x, _) = with_dense_layer(), images(64)
    given = samples(model, x)
    wrong = Wanted([-value for value in given.wanted["logits"].values])
    _, result = int8.int8_file({"grouped": model}, samples(model, x, logits=wrong))
    assert result.chosen.name == "grouped, fp32" and len(result.passed_over) == 5
    assert all("output 'logits': its error is" in text for text in result.passed_over.values())
    assert result.refused.startswith("'grouped, ") and "output 'logits': its error is" in result.refused


def broken(model):
    copy = model.clone()
    copy.graph.initializers["head.weight"].const_value = ir.tensor(-arrays(model)["head.weight"])
    return copy


def test_a_real_trial_measures_every_form_and_every_layer():
    model = with_dense_layer()
    tried = int8_forms.quantize({"grouped": model}, samples(model, images(64)[0], batch=16))
    found, layers = tried.found, tried.layers
    assert not tried.failed
    assert len(found) >= 6 and all(trial.milliseconds > 0 for trial, _ in found)
    assert [trial.milliseconds for trial, _ in found] == sorted(trial.milliseconds for trial, _ in found)
    assert {name: set(timed) for name, timed in layers.items()} == {
        "first.weight": {"fp32 grouped", "int8 grouped"}, "second.weight": {"fp32 grouped", "int8 grouped"},
    }  # fmt: skip
    assert all(value > 0 for timed in layers.values() for value in timed.values())


def test_the_temperature_is_fitted_to_the_integers_own_logits():
    model, (x, y) = load(1), images()
    found = refit_head(model, samples(model, x[1200:], y[1200:]))
    text, figures = found.told, found.figures
    (temperature,) = (float(value) for name, value in arrays(model).items() if name.endswith("temperature"))
    assert abs(temperature - 1.5) > 1e-3 and text == f"temperature fitted again: 1.5000 before, {temperature:.4f} after"
    assert figures["nll_after"] < figures["nll_before"] and set(figures) == {
        "nll_before", "nll_after", "ece_before", "ece_after",
    }  # fmt: skip
    logits, probabilities = run(model, x[1200:], "logits", "probabilities")
    assert found.fit == {
        "nll_before": pytest.approx(log_loss(y[1200:], softmax(logits, 1))),
        "nll_after": figures["nll_after"],
    }
    shifted = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    assert np.allclose(probabilities, shifted / shifted.sum(1, keepdims=True), atol=1e-6)


def test_a_head_that_cannot_be_fitted_stays_and_says_why():
    model, (x, _) = load(1), images(64)
    right = run(model, x, "logits")[0].argmax(1)  # labels that the logits separate perfectly
    found = refit_head(model, samples(model, x, right))
    assert found.told == "kept: the logits classify all held-out data correctly" and found.fit is None
    assert set(found.figures) == {"nll_before", "ece_before"}
    assert [float(value) for name, value in arrays(model).items() if name.endswith("temperature")] == [1.5]
    given = samples(model, x, right)
    for value in list(model.graph.initializers.values()):
        value.name = value.name.replace("calibration.", "")
    assert refit_head(model, given) == Refit("none that can be fitted again")


@dataclass(frozen=True)
class Divided(Temperature):
    """A head of another package: a temperature under another name."""

    name: ClassVar = "divided"
    buffers: ClassVar = {"divisor": 0}
    tasks: ClassVar = ("classification",)

    def fit(self, held, before):
        return Fitted({"divisor": super().fit(held, before).values["temperature"]}, f"level {held.level}")

    def told(self, before, fitted):
        return f"{fitted.note}: divisor {float(before['divisor'])} became {float(fitted.values['divisor']):.4f}"


def test_a_head_of_another_package_is_fitted_again():
    model, (x, y) = load(1), images()
    given = dataclasses.replace(samples(model, x[1200:], y[1200:]), level=0.8)
    for value in list(model.graph.initializers.values()):
        value.name = value.name.replace("calibration.temperature", "calibration.divisor")
    assert refit_head(model, given) == Refit("none that can be fitted again")
    with HEADS.forgetting():
        register(Divided())
        found = refit_head(model, given)
    (stored,) = (float(value) for name, value in arrays(model).items() if name.endswith("divisor"))
    assert found.told == f"level 0.8: divisor 1.5 became {stored:.4f}" and found.note == "level 0.8"
    assert found.figures["nll_after"] < found.figures["nll_before"]


def test_large_tensors_are_thinned_but_keep_their_extremes():
    values = np.arange(300_000, dtype=np.float32)[::-1].reshape(3, -1)
    kept = int8_forms._selected(values)
    assert kept.size <= int8_forms.MOST_VALUES + 2 and (kept.min(), kept.max()) == (0, 299_999)
    assert int8_forms._selected(values[:, :10]).shape == (3, 10)
