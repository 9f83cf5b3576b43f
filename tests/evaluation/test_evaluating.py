"""A file is measured as scikit-learn measures its answers, whatever wrote it; what does not fit is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from scipy.special import logsumexp, softmax
from sklearn.datasets import load_diabetes
from sklearn.metrics import accuracy_score, log_loss, r2_score, roc_auc_score

import sparsify as sp
from sparsify.errors import DataError, EvaluationError, LoadError
from sparsify.evaluation import OutputNames, Preparation, evaluate, write_evaluation
from sparsify.reading.digits import digits_arrays
from tests.evaluation.files import PREPARED, classifier, fitted, prepared, regression

DATA = digits_arrays()
X, Y = DATA["x_test"], DATA["y_test"]
TURNED = np.ascontiguousarray(np.rot90(X, axes=(1, 2)))
EVERYTHING = ("logits", "probabilities", "prediction_set", "accept", "ood_score")


def logits(pixels, weight=None):
    matrix, bias = weight or fitted()
    return (prepared(pixels).reshape(-1, 64) @ matrix + bias).astype(np.float64)


@pytest.fixture
def turned(tmp_path):
    np.savez(tmp_path / "turned.npz", x_test=TURNED)
    return tmp_path / "turned.npz"


def test_every_output_is_measured(tmp_path, turned):
    path = classifier(tmp_path / "m.onnx", outputs=EVERYTHING)
    report = evaluate(path, "digits", ood=[turned])
    model, z = report["model"], logits(X)
    p = softmax(z / 1.5, 1)
    assert set(model["outputs"]) == set(EVERYTHING) and report["data"]["samples"] == 360
    assert model["before"]["accuracy"] == accuracy_score(Y, z.argmax(1))
    assert model["before"]["nll"] == pytest.approx(log_loss(Y, softmax(z, 1)), abs=1e-5)
    assert model["after"]["nll"] == pytest.approx(log_loss(Y, p), abs=1e-5)
    assert (
        model["values"]["nll"] == pytest.approx(model["after"]["nll"])
        and model["values"]["accuracy"] == model["after"]["accuracy"]
    )
    sets = p > 0.05
    found = model["prediction_set"]
    assert found["coverage"] == pytest.approx(sets[np.arange(360), Y].mean())
    assert found["mean_size"] == pytest.approx(sets.sum(1).mean()) == model["values"]["set_size"]
    taken, right = p.max(1) > 0.6, p.argmax(1) == Y
    assert model["accept"]["coverage"] == pytest.approx(taken.mean())
    assert model["accept"]["risk"] == pytest.approx((~right[taken]).mean())
    scores = model["ood"]["turned"]["scores"]
    assert list(scores) == ["maximum probability", "entropy", "energy", "ood_score"]
    want = roc_auc_score([1] * 360 + [0] * 360, np.concatenate([logsumexp(z, 1), logsumexp(logits(TURNED), 1)]))
    assert scores["ood_score"]["auroc"] == pytest.approx(want, abs=1e-5) == scores["energy"]["auroc"]
    low, high = model["intervals"]["auroc.turned.energy"]
    assert 0 < low < want < high <= 1
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    "kept", [("logits",), ("probabilities",), ("logits", "accept"), ("probabilities", "prediction_set")]
)
def test_outputs_that_are_absent_are_skipped(tmp_path, kept, turned):
    found = evaluate(classifier(tmp_path / "m.onnx", outputs=kept), "digits", ood=[turned])["model"]
    assert ("before" in found, "after" in found) == ("logits" in kept, "probabilities" in kept)
    assert {"prediction_set", "accept"} & found.keys() == {"prediction_set", "accept"} & {*kept}
    assert bool(found["ood"]) == ("logits" in kept)


def test_a_file_of_another_tool_is_measured_by_the_names_of_its_outputs(tmp_path, turned):
    renamed = {"logits": "scores", "probabilities": "output", "ood_score": "density", "uncertainty": "u"}
    path = classifier(tmp_path / "other.onnx", outputs=tuple(renamed), renamed=renamed, metadata={})
    own = evaluate(
        classifier(tmp_path / "m.onnx", outputs=("logits", "probabilities", "ood_score")), "digits", ood=[turned]
    )["model"]
    names = OutputNames(logits="scores", probabilities="output", ood_score="density")
    given = Preparation(scale=255, mean=(0.3,), std=(0.5,))
    found = evaluate(path, "digits", names=names, preparation=given, ood=[turned])["model"]
    for key in ("before", "after", "ood", "intervals"):
        assert found[key] == own[key]
    assert found["outputs"] == {"logits": "scores", "probabilities": "output", "ood_score": "density"}
    uncertain = OutputNames(logits="scores", ood_score="u", lower_is_inside=True)
    found = evaluate(path, "digits", names=uncertain, preparation=given, ood=[turned])["model"]
    assert found["ood"]["turned"]["scores"]["ood_score"] == own["ood"]["turned"]["scores"]["ood_score"]


@pytest.mark.parametrize("shape", [("N", 8, 8, 1), (7, 1, 8, 8), ("N", 8, 8), ("N", "C", "H", "W")])
def test_other_shapes_of_the_input_give_the_same_figures(tmp_path, shape):
    own = evaluate(classifier(tmp_path / "m.onnx"), "digits")["model"]
    found = evaluate(classifier(tmp_path / "other.onnx", shape=shape), "digits")["model"]
    assert found["after"]["nll"] == pytest.approx(own["after"]["nll"], abs=1e-6)


def test_two_files_are_told_apart_and_a_file_is_not_told_from_itself(tmp_path, turned):
    good = classifier(tmp_path / "good.onnx", outputs=EVERYTHING, accept_above=0.3)
    poor = classifier(tmp_path / "poor.onnx", outputs=EVERYTHING, weight=fitted(1, 60), accept_above=0.3)
    report = evaluate(good, "digits", against=poor, ood=[turned])
    rows = {row["figure"]: row for row in report["differences"]}
    assert rows["accuracy"]["verdict"] == rows["nll"]["verdict"] == rows["brier"]["verdict"] == "better"
    assert rows["set_size"]["verdict"] == "better" and {"set_coverage", "accepted", "accepted_risk"} <= rows.keys()
    for row in rows.values():
        low, high = row["interval"]
        assert low <= row["difference"] <= high or row["figure"] == "accuracy"
        assert (row["verdict"] == "no clear difference") == (low <= 0 <= high)
    for key in ("nll", "brier", "set_size"):
        assert rows[key]["difference"] == pytest.approx(
            report["model"]["values"][key] - report["against"]["values"][key]
        )
    assert report["changes"]["gained"] > report["changes"]["lost"] and len(report["changes"]["classes"]) == 10
    other = {row["figure"]: row for row in evaluate(poor, "digits", against=good)["differences"]}
    assert other["nll"]["verdict"] == "worse" and other["nll"]["difference"] == pytest.approx(
        -rows["nll"]["difference"]
    )
    same = evaluate(good, "digits", against=good, ood=[turned])
    assert {row["verdict"] for row in same["differences"]} == {"no clear difference"}


def test_the_second_file_may_be_of_another_tool(tmp_path):
    ours = classifier(tmp_path / "m.onnx")
    theirs = classifier(tmp_path / "other.onnx", outputs=("logits",), renamed={"logits": "scores"}, metadata={})
    given = Preparation(scale=255, mean=(0.3,), std=(0.5,))
    report = evaluate(theirs, "digits", against=ours, names=OutputNames(logits="scores"), preparation=given)
    assert report["model"]["before"] == report["against"]["before"] and "after" not in report["model"]


def test_a_regression_with_intervals(tmp_path):
    found = load_diabetes()
    x, y = (found.data * 20).astype(np.float32), found.target.astype(np.float32)
    ones = np.ones((len(y), 1), np.float32)
    weight = np.linalg.lstsq(np.concatenate([x, ones], 1)[:221], y[:221], rcond=None)[0]
    np.savez(tmp_path / "d.npz", x_test=x[221:], y_test=y[221:])
    path = regression(tmp_path / "r.onnx", weight, reach=90)
    model = evaluate(path, tmp_path / "d.npz")["model"]
    predicted = x[221:] @ weight[:-1] + weight[-1]
    assert model["numbers"]["r2"] == pytest.approx(r2_score(y[221:], predicted), abs=1e-5)
    assert model["numbers"]["rmse"] == pytest.approx(np.sqrt(np.mean((predicted - y[221:]) ** 2)), rel=1e-5)
    assert model["interval"]["coverage"] == pytest.approx(np.mean(abs(predicted - y[221:]) <= 90), abs=0.01)
    assert model["interval"]["width"] == pytest.approx(180)
    low, high = model["intervals"]["rmse"]
    assert low < model["numbers"]["rmse"] < high
    other = regression(tmp_path / "mean.onnx", np.array([*np.zeros(10), y[:221].mean()]), reach=90)
    rows = {row["figure"]: row for row in evaluate(path, tmp_path / "d.npz", against=other)["differences"]}
    assert rows["r2"]["verdict"] == rows["rmse"]["verdict"] == "better"
    assert (
        rows["interval_coverage"]["verdict"] == "higher" and rows["interval_width"]["verdict"] == "no clear difference"
    )


def test_encoded_images_of_a_part_are_read_as_the_file_wants_them(tmp_path):
    from tests.loading.test_data import encoded

    blob, offsets = encoded(list(X[:40]))
    np.savez(tmp_path / "d.npz", images_test=blob, offsets_test=offsets, y_test=Y[:40])
    path = classifier(tmp_path / "m.onnx")
    found = evaluate(path, tmp_path / "d.npz")
    assert found["model"]["before"]["nll"] == pytest.approx(
        log_loss(Y[:40], softmax(logits(X[:40]), 1), labels=range(10)), abs=1e-4
    )
    with pytest.raises(EvaluationError, match=r"takes inputs \[N, 1, 8, 8\], and .* gives \[N, 1, 6, 6\]"):
        evaluate(path, tmp_path / "d.npz", image_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as images, test/<class>/*, and the same samples as an .npz."""
    where = tmp_path_factory.mktemp("images")
    order = np.argsort(Y[:60], kind="stable")
    for k, row in enumerate(order):
        path = where / "test" / str(Y[row]) / f"{k:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(X[row]).save(path)
    np.savez(where / "same.npz", x_test=X[order], y_test=Y[order])
    return where


def test_a_folder_of_images_is_measured_as_its_arrays_are(tmp_path, folder):
    path = classifier(tmp_path / "m.onnx", metadata={**PREPARED, "classes": json.dumps([str(k) for k in range(10)])})
    own = evaluate(path, folder)
    assert own["data"]["samples"] == 60 and own["data"]["class_names"] == [str(k) for k in range(10)]
    assert own["model"]["after"] == evaluate(path, folder / "same.npz")["model"]["after"]
    with pytest.raises(DataError, match=r"has no folder val/. Its images belong in val/<class>/"):
        evaluate(path, folder, part="validation")
    with pytest.raises(EvaluationError, match=r"takes inputs \[N, 1, 8, 8\], and .* gives \[N, 1, 5, 5\]"):
        evaluate(path, folder, image_size=5)
    with pytest.raises(EvaluationError, match=r"folders of images in .* are classes, and .* is for regression"):
        evaluate(regression(tmp_path / "r.onnx", np.ones(65)), folder)


def test_a_folder_without_training_images_has_the_classes_of_the_file(tmp_path, folder):
    path = classifier(tmp_path / "m.onnx", metadata={**PREPARED, "classes": json.dumps([str(k) for k in range(10)])})
    shutil.copytree(folder / "test", tmp_path / "few" / "test", ignore=shutil.ignore_patterns("3"))
    report = evaluate(path, tmp_path / "few")
    assert report["model"]["class_samples"][3] == 0 and report["model"]["after"]["accuracy"] > 0.8
    (tmp_path / "few" / "test" / "other").mkdir()
    with pytest.raises(DataError, match="has the class 'other', which never occurs in training"):
        evaluate(path, tmp_path / "few")


def test_a_file_that_takes_bytes_is_measured_on_the_same_images(tmp_path, folder):
    weight, bias = fitted()
    layer = torch.nn.Linear(64, 10)
    layer.weight.data, layer.bias.data = torch.tensor(weight.T), torch.tensor(bias)
    inputs = torch.from_numpy(prepared(X))
    program = sp.trace(torch.nn.Sequential(torch.nn.Flatten(), layer), (inputs[:2],)).eval()
    step = sp.Preprocessing(mean=(0.3,), std=(0.5,), scale=255.0, layout="NHWC")
    found = {}
    for kind in ("float", "uint8"):
        path = tmp_path / f"{kind}.onnx"
        sp.export(program, path, inputs=inputs, preprocessing=step, input_type=kind)
        found[kind] = [evaluate(path, data)["model"]["before"]["nll"] for data in (folder, folder / "same.npz")]
    assert onnxruntime.InferenceSession(path).get_inputs()[0].type == "tensor(uint8)"
    want = log_loss(Y[:60], softmax(logits(X[:60]), 1), labels=range(10))
    assert found["float"] == pytest.approx([want] * 2, abs=1e-5) and found["uint8"] == pytest.approx(
        [want] * 2, abs=1e-5
    )


def test_a_file_of_several_inputs_is_refused(tmp_path):
    model = onnx.load(classifier(tmp_path / "m.onnx"))
    model.graph.input.append(onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT64, ["N"]))
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(
        EvaluationError, match=r"has 2 inputs \(x, lengths\); only files of one .*`sparsify run` measures"
    ):
        evaluate(tmp_path / "two.onnx", "digits")


def _npz(tmp_path, **arrays):
    np.savez(tmp_path / "d.npz", **arrays)
    return tmp_path / "d.npz"


FLOATS = (X / 255).astype(np.float32)


@pytest.mark.parametrize(
    ("made", "arrays", "options", "error", "words"),
    [
        ({}, {"x_test": FLOATS, "y_test": Y}, {}, EvaluationError, "was made for bytes .its scale is 255., and .* holds float32"),
        ({"metadata": {}}, {"x_test": X, "y_test": Y}, {}, EvaluationError, "does not say how bytes become inputs. Give --scale 255"),
        ({}, {"x_test": X[:, :7], "y_test": Y}, {}, EvaluationError, r"takes inputs \[N, 1, 8, 8\], and .* gives \[N, 1, 7, 8\]"),
        ({}, {"x_test": X, "y_test": Y + 1}, {}, EvaluationError, "knows 10 classes, and the labels go up to 10"),
        ({}, {"x_test": X, "y_test": Y[:9]}, {}, DataError, "x_test has 360 samples, y_test has 9"),
        ({}, {"x_test": X, "y_test": Y / 2}, {}, DataError, "should hold classes"),
        ({}, {"x_train": X, "y_train": Y}, {}, DataError, "lacks x_test and y_test. It holds x_train, y_train"),
        ({}, {"x_train": X, "y_train": Y}, {"part": "all"}, EvaluationError, "part should be one of train, validation, test"),
        ({}, {"x_test": np.where(FLOATS > 0.9, np.nan, FLOATS), "y_test": Y}, {}, DataError, "NaN or infinity"),
        ({"metadata": {**PREPARED, "classes": '["zero", "one"]'}}, {"x_test": X, "y_test": Y, "class_names": ["nil", "one"]}, {},
         EvaluationError, "class 0 is 'zero' in .* and 'nil' in"),
        ({"metadata": {**PREPARED, "std": "[0]"}}, {"x_test": X, "y_test": Y}, {}, EvaluationError, "hold a mean, std or scale"),
        ({"metadata": {**PREPARED, "mean": "[" * 10**4}}, {"x_test": X, "y_test": Y}, {}, EvaluationError, "hold a mean, std or scale"),
        ({"metadata": {**PREPARED, "mean": "[1,2]"}}, {"x_test": X, "y_test": Y}, {}, EvaluationError, "mean has 2 numbers, .* 1 channels"),
        ({"metadata": {"task": "multilabel"}}, {"x_test": X, "y_test": Y}, {}, EvaluationError, "is for the task 'multilabel'"),
        ({"outputs": ("accept",)}, {"x_test": X, "y_test": Y}, {}, EvaluationError, "no output that can be measured.*--logits NAME"),
        ({}, {"x_test": X, "y_test": Y}, {"names": OutputNames(logits="z")}, EvaluationError, "has no output 'z'.*it has logits, prob"),
        ({}, {"x_test": X, "y_test": Y}, {"names": OutputNames(probabilities="logits")}, EvaluationError, "holds no probabilities"),
        ({"outputs": ("logits", "ood_score")}, {"x_test": X, "y_test": Y}, {"names": OutputNames(ood_score="logits", logits="ood_score")},
         EvaluationError, r"has shape \[360\]. The role logits needs scores of the classes"),
        ({}, {"x_test": X, "y_test": Y}, {"preparation": Preparation(mean=(1e30,), std=(1e-30,), scale=1)}, EvaluationError,
         "is NaN or infinite for 360 of 360 samples, first sample 0"),
        ({}, {"x_test": X, "y_test": Y}, {"ood": ["none.npz"]}, DataError, "no data file none.npz"),
        ({}, {"x_test": X, "y_test": Y, "x_test.more": X}, {}, DataError, "one of several inputs"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path, made, arrays, options, error, words):
    with pytest.raises(error, match=words):
        evaluate(classifier(tmp_path / "m.onnx", **made), _npz(tmp_path, **arrays), **options)


def test_files_that_are_none(tmp_path):
    (tmp_path / "text.onnx").write_text("no file")
    for path, words in (
        (tmp_path / "none.onnx", "there is no file"),
        (tmp_path, "directory"),
        ("/dev/zero", "device"),
        (tmp_path / "text.onnx", "cannot"),
    ):
        with pytest.raises(LoadError, match=words):
            evaluate(path, "digits")
    with pytest.raises(DataError, match=r"or on 'digits', found 'a\.csv'"):
        evaluate(classifier(tmp_path / "m.onnx"), "a.csv")


def test_what_the_samples_do_not_define_is_none(tmp_path):
    path = classifier(tmp_path / "m.onnx", outputs=("logits", "accept"), accept_above=2.0)
    report = evaluate(path, "digits", against=path)
    assert report["model"]["accept"]["risk"] is None
    assert report["model"]["values"]["accepted_risk"] is report["model"]["intervals"]["accepted_risk"] is None
    rows = {row["figure"]: row for row in report["differences"]}
    assert rows["accepted_risk"]["reason"] == "most draws of the samples do not define it"
    json.dumps(report, allow_nan=False)
    write_evaluation(report, tmp_path / "e")
    assert "not compared: most draws" in (tmp_path / "e" / "evaluation.html").read_text()


def test_a_batch_beyond_bounds_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="takes 1,000,000 samples per call"):
        evaluate(classifier(tmp_path / "m.onnx", shape=(10**6, 1, 8, 8)), "digits")


def test_sets_are_called_after_their_files_where_these_differ(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "x.npz", x_test=TURNED[:30])
    path, sets = classifier(tmp_path / "m.onnx"), [str(tmp_path / folder / "x.npz") for folder in ("a", "b")]
    assert list(evaluate(path, "digits", ood=sets[:1])["model"]["ood"]) == ["x"]
    report = evaluate(path, "digits", ood=sets)
    assert list(report["model"]["ood"]) == sets and report["data"]["ood"][sets[0]] == {"data": sets[0], "samples": 30}


def test_files_that_cannot_be_compared(tmp_path):
    ours = classifier(tmp_path / "m.onnx")
    few = classifier(tmp_path / "few.onnx", weight=tuple(value[..., :9] for value in fitted()))
    with pytest.raises(EvaluationError, match="knows 9 classes"):
        evaluate(ours, "digits", against=few)
    with pytest.raises(EvaluationError, match=r"is for classification, .* for regression"):
        evaluate(ours, "digits", against=regression(tmp_path / "r.onnx", np.ones(5)))


def test_the_answers_are_those_of_the_session(tmp_path):
    path = classifier(tmp_path / "m.onnx", shape=(32, 1, 8, 8))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = np.resize(np.arange(360), 384)
    parts = [session.run(["logits"], {"x": prepared(X[part])})[0] for part in rows.reshape(-1, 32)]
    z = np.concatenate(parts)[:360].astype(np.float64)
    assert evaluate(path, "digits")["model"]["before"]["nll"] == pytest.approx(log_loss(Y, softmax(z, 1)), abs=1e-9)
