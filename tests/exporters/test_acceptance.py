"""What is good enough in integers: a lost class, a lost output, or lost accuracy is not; ties that fall the other way are."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import pytest

from sparsify.exporters.acceptance import _lost, judge
from sparsify.exporters.graphs import Writer
from sparsify.exporters.int8_dense import dense_int8, dense_layers
from sparsify.tasks import Binary, Dense, Multilabel, Regression, Sequence
from sparsify.timing import values_of
from tests.exporters.grouped_mlp import arrays, grouped_int8, images, in_batches, with_dense_layer

RANDOM = np.random.default_rng(0)


def scores(samples=1000, rare=3):
    """[N, 3]; the last class in ``rare`` samples only."""
    labels = np.arange(samples) % 2
    labels[:rare] = 2
    return RANDOM.normal(size=(samples, 3)) + 8.0 * np.eye(3)[labels], labels


@pytest.mark.parametrize("rare", [1, 3, 31])
@pytest.mark.parametrize("with_labels", [True, False])
def test_a_class_that_is_lost_is_refused_however_rare(rare, with_labels):
    want, labels = scores(rare=rare)
    have = want.copy()
    have[:rare, 2] -= 12.0
    judged = judge(want, have, labels if with_labels else None)
    assert judged.agreed == 1000 - rare and "class 2" in judged.refused
    assert judge(want, want + RANDOM.normal(size=want.shape) * 0.1, labels).refused == ""


def test_an_output_that_stands_still_is_refused_in_any_shape():
    for shape in ((200,), (200, 1), (200, 4), (200, 3, 5, 5), (200, 7, 11)):
        want = RANDOM.normal(size=shape)
        assert judge(want, want + RANDOM.normal(size=shape) * 0.1).refused == ""
        still = want.copy()
        still.reshape(200, -1)[:, 0] = 0.0
        assert "of its standard deviation" in judge(want, still).refused or len(shape) < 3
        assert "its error is" in judge(want, -want).refused
        assert "its error is" in judge(want, 2 * want).refused  # a scale that is wrong by two
        assert "NaN" in judge(want, np.where(want > 2, np.nan, want)).refused


def test_ties_of_untrained_weights_are_no_fault():
    want = RANDOM.normal(size=(500, 1)) * np.array([[1.0, 1.0]]) + RANDOM.normal(size=(500, 2)) * 1e-3
    judged = judge(want, want + RANDOM.normal(size=want.shape) * 0.01)
    assert judged.agreed < 400 and judged.refused == "" and judged.clear <= 10


def test_accuracy_that_is_lost_by_more_than_chance_is_refused():
    labels = np.arange(2000) % 2
    want = np.stack([1.0 - labels, labels], axis=1) + RANDOM.normal(size=(2000, 2)) * 0.1
    have = want.copy()
    have[:60] = want[:60, ::-1]
    assert "class" in judge(want, have, labels).refused or "accuracy" in judge(want, have, labels).refused
    one = want.copy()
    one[:2] = want[:2, ::-1]
    assert judge(want, one, labels).refused == ""


def test_excluded_classes_stay_excluded():
    want, labels = scores(rare=0)
    want[:, 2] = -np.inf
    assert judge(want, want, labels).refused == ""
    assert "infinite" in judge(want, np.where(np.isfinite(want), want, -1e4), labels).refused
    assert "infinite" in judge(want, np.where(np.isfinite(want), want, np.inf), labels).refused
    assert "infinite" in judge(want, np.where(np.isfinite(want), want, np.nan), labels).refused


def logits_of(model, held_out):
    return np.concatenate(values_of(model, held_out)["logits"]).astype(np.float64)


@functools.cache
def int8_file():
    """A trained network with grouped and dense layers in integers, channels of very different scales, and the program's logits."""
    plain, (x, y) = with_dense_layer(), images()
    plain.graph.initializers["eye"].const_value = ir.tensor(np.diag(np.geomspace(0.3, 3, 128).astype(np.float32)))
    calibration, held_out = in_batches(x[:256]), in_batches(x[1200:])
    grouped = grouped_int8(plain, calibration)
    written = dense_int8(grouped, calibration, dense_layers(grouped))
    return written, held_out, logits_of(plain, held_out), y[1200:]


FAULTS = {
    "nothing": ("head.bias", lambda v: v),
    "scale of activations": ("relu_scale", lambda v: v * 2),
    "scale of the input": ("t_scale", lambda v: v * 3),
    "scale of grouped weights": ("relu_1_weight_scale", lambda v: v / 3),
    "zero point of grouped activations": ("relu_1_zero", lambda v: v + 50),
    "zero point of dense activations": ("between_zero_point", lambda v: v + 50),
    "scales of channels swapped": ("eye_scale", lambda v: v[::-1]),
    "dense weights negated": ("eye_quantized", lambda v: -v),
    "grouped weights negated": ("relu_weight", lambda v: (256 - v.astype(int)).clip(0, 255).astype(v.dtype)),
}


def test_a_single_sample_is_refused_with_its_error():
    judged = judge(np.array([[1.0, -2.0, 0.5]]), np.array([[1.0, -1.5, 0.5]]))
    assert judged.refused == "its comparison needs at least two held-out samples" and judged.largest_error == 0.25
    assert judged.error == pytest.approx(0.5 / np.sqrt(5.25)) and judge(np.zeros((1, 2)), np.zeros((1, 2))).error == 0


@pytest.mark.parametrize("name", FAULTS)
def test_faults_in_the_integers_of_a_real_file_are_refused(name):
    """What one node reads is wrong; a scale that all its readers share would only be a coarser one."""
    written, held_out, want, labels = int8_file()
    model, (target, change) = written.clone(), FAULTS[name]
    value = arrays(model)[target]
    wrong = np.ascontiguousarray(change(value)).astype(value.dtype).reshape(value.shape)
    *_, reader = (node for node in model.graph if model.graph.initializers[target] in node.inputs)
    place = reader.inputs.index(model.graph.initializers[target])
    reader.replace_input_with(place, Writer(reader, model.graph).constant("wrong", wrong))
    have = logits_of(model, held_out)
    assert (name == "nothing") == (judge(want, have, labels).refused == "") == (judge(want, have).refused == "")


def answers(labels=3, samples=400):
    """Logits of yes or no, [N, K], and targets; the last label is rarely yes."""
    target = (RANDOM.random((samples, labels)) < 0.4).astype(np.int64)
    target[:, -1] = np.arange(samples) % 20 == 0
    return 6.0 * (2 * target - 1) + RANDOM.normal(size=target.shape), target


def test_the_decisions_of_each_label_are_judged_apart():
    want, target = answers()
    assert judge(want, want + RANDOM.normal(size=want.shape) * 0.1, target, task=Multilabel()).refused == ""
    have = want.copy()
    have[target[:, 2] == 1, 2] -= 7.0  # one label of three says no, too often by 20 of 1,200 answers
    judged = judge(want, have, target, task=Multilabel())
    assert judged.decisions == 1200 and "answer 1 of label 2" in judged.refused
    assert "answer 1 of label 2" in judge(want - 0.5, have - 0.5, task=Multilabel(), threshold=-0.5).refused
    one = judge(want[:, :1], -want[:, :1], target[:, :1], task=Binary())
    assert one.decisions == 400 and one.agreed == 0 and one.refused


@pytest.mark.parametrize(("task", "axis"), [(Dense(ignore=9), 1), (Sequence(ignore=9), -1)])
def test_positions_that_are_not_judged_may_say_what_they_like(task, axis):
    target = RANDOM.integers(0, 3, size=(60, 12))
    want = np.moveaxis(8.0 * np.eye(3)[target] + RANDOM.normal(size=(60, 12, 3)), -1, axis)
    have, target[:, :4] = want.copy(), 9
    np.moveaxis(have, axis, -1)[:, :2] = np.moveaxis(want, axis, -1)[:, :2][..., ::-1]
    judged = judge(want, have, target, task=task)
    assert judged.decisions == judged.agreed == 60 * 8
    assert judge(want, have, task=task).agreed < judge(want, have, task=task).decisions == 60 * 12


def test_a_regression_decides_nothing_and_is_judged_by_the_spread_of_its_outputs():
    want = RANDOM.normal(size=(200, 2)) * np.array([1.0, 1000.0])
    good = want + RANDOM.normal(size=want.shape) * np.array([0.05, 50.0])
    judged = judge(want, good, task=Regression())
    assert judged.refused == "" and judged.decisions == 0 and 0.04 < judged.error < 0.06
    wrong = want + RANDOM.normal(size=want.shape) * np.array([0.6, 50.0])
    assert "the error of unit 0 is 0." in judge(want, wrong, task=Regression()).refused


def test_chance_is_summed_for_few_changed_answers_and_taken_as_normal_for_many():
    for count in (900, 1100):
        for lost, found in ((0.52, False), (0.56, True)):
            before = np.arange(count) < round(lost * count)
            assert _lost(before, ~before, 0.0) == found
