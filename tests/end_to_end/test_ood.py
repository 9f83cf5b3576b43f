"""`sparsify run --ood`: sets of inputs of no class, measured for every model, in metrics.json, headline and report."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import sparsify as sp
from sparsify.errors import RecipeError
from sparsify.loading import load_data, load_ood
from sparsify.runs.pairs import parse_pairs
from sparsify.runs.recipe import parse_recipe
from tests.end_to_end.test_command import SHORT, sparsify

DIGITS = (load_digits().images * 15.9375).astype(np.uint8)


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "turned.npz"
    np.savez(path, x_test=np.ascontiguousarray(np.rot90(DIGITS[:300], axes=(1, 2))))
    return path


def test_two_sets_are_measured_for_both_models(capsys, tmp_path, turned):
    out = tmp_path / "a"
    code, shown, err = sparsify(
        capsys, "run", "--method", "rigl", "--out", out, *SHORT, "--baseline", "--ood", turned, "--ood", "photos"
    )
    assert code == 0, err
    report = json.loads((out / "metrics.json").read_text())
    for part in ("dense", "model"):
        assert {name: row["samples"] for name, row in report[part]["ood"].items()} == {"turned": 300, "photos": 1000}
        for name, row in report[part]["ood"].items():
            assert list(row["scores"]) == sorted(row["scores"]), "sorted keys"
            assert {"energy", "entropy", "maximum probability", "mahalanobis", "vim:0"} <= row["scores"].keys()
            found = row["scores"]["maximum probability"]["auroc"]
            assert (0.9 if name == "photos" else 0.2) < found <= 1, (
                "turned digits look like digits to a network that was trained shortly"
            )
    assert report["model"]["ood_threshold"] is None and set(report["data"]["ood"]) == {"turned", "photos"}
    assert "AUROC against" in shown and "photos" in shown

    data = load_data("digits", seed=0)
    program = sp.Program.load(out / "program.sparsify").eval()
    rows = [x.batch(torch.arange(len(x)))[0] for x in (data.test, load_ood(str(turned), data))]
    with torch.no_grad():
        scores = [program.outputs(x)["logits"].double().softmax(1).amax(1) for x in rows]
    truth = [1] * len(scores[0]) + [0] * len(scores[1])
    want = roc_auc_score(truth, torch.cat(scores).numpy())
    assert report["model"]["ood"]["turned"]["scores"]["maximum probability"]["auroc"] == pytest.approx(want, abs=1e-4)

    page = (out / "report.html").read_text()
    assert "Out of distribution" in page and "photos" in page and page.count("<svg") == 6
    assert {**parse_recipe(out / "recipe.toml", {}).ood_names()} == {"turned": str(turned), "photos": "photos"}
    prints = {
        name: load_ood(text, data).fingerprint() for name, text in (("turned", str(turned)), ("photos", "photos"))
    }
    assert report["data"]["ood"] == prints, "the same inputs each time"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing.npz", "there is no data file nothing.npz"),
        ("large.npz", "inputs have shape [1, 28, 28], but those of the training data have [1, 8, 8]"),
    ],
)
def test_a_set_that_does_not_fit_ends_before_training(capsys, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    np.savez("large.npz", x_test=np.zeros((4, 28, 28), np.uint8))
    code, _, err = sparsify(capsys, "run", "--ood", given, "--out", tmp_path / "a")
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "a" / "checkpoint.pt").exists()


def test_sets_in_a_recipe_and_their_names(tmp_path):
    recipe = parse_recipe(None, parse_pairs(["data.ood=a/letters.npz,photos,f.py:shapes"]))
    assert recipe.ood == ("a/letters.npz", "photos", "f.py:shapes")
    (tmp_path / "r.toml").write_text(recipe.to_toml())
    assert parse_recipe(tmp_path / "r.toml", {}) == recipe
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "letters.npz").write_bytes(b"")
    both = [str(tmp_path / name / "letters.npz") for name in ("one", "two")]
    assert list(parse_recipe(None, {"ood": (both[0], "photos", "f.py:shapes")}).ood_names()) == [
        "letters",
        "photos",
        "shapes",
    ]
    assert list(parse_recipe(None, {"ood": tuple(both)}).ood_names()) == both, "one name for two files would hide one"
    with pytest.raises(RecipeError, match="names a set twice"):
        parse_recipe(None, {"ood": ("photos", "photos")})


def test_moon_from_the_command_to_the_file(capsys, tmp_path, turned):
    out = tmp_path / "m"
    options = ("--method", "moon(rigl)", "--set", "method.options.moon.alpha_every=5", "--ood", turned, "--baseline")
    code, shown, err = sparsify(capsys, "run", "--out", out, *SHORT, *options)
    assert code == 0, err
    report = json.loads((out / "metrics.json").read_text())
    model = report["model"]
    assert model["method"] == "moon(rigl)" and "ood_score" in shown
    assert {"ood_score", "unknown"} <= model["ood"]["turned"]["scores"].keys()
    assert not {"ood_score", "unknown"} & report["dense"]["ood"]["turned"]["scores"].keys()
    assert model["nonzeros"] == round(0.1 * model["maskable"]), (
        "the row of the unknown is dense, and not counted as maskable"
    )

    file = onnx.load(out / "model.onnx")
    assert {p.key: p.value for p in file.metadata_props}["ood_threshold"] == repr(model["ood_threshold"])
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    names = [output.name for output in session.get_outputs()]
    data = load_data("digits", seed=0)
    x = data.validation.batch(torch.arange(len(data.validation)))[0].numpy()
    have = dict(zip(names, session.run(None, {session.get_inputs()[0].name: x}), strict=True))
    assert have["logits"].shape == have["probabilities"].shape == (len(x), 10)
    assert abs(float((have["ood_score"] >= model["ood_threshold"]).mean()) - 0.95) < 0.02
    kept = have["logits"] - have["logits"].max(1, keepdims=True)
    shares = np.exp(kept) / np.exp(kept).sum(1, keepdims=True)
    np.testing.assert_allclose(have["ood_score"], shares.max(1) * (1 - have["unknown"]), atol=1e-5)

    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert rows[-1]["readings"]["alpha"] == 1.0 and 0 < rows[-1]["readings"]["unknown_mass"] < 1
    assert 0 <= rows[-1]["val_unknown"] < 1 and 0 < rows[-1]["val_ood_score"] <= 1
    page = (out / "report.html").read_text()
    assert "The unknown class" in page and "AUROC against turned, ood_score" in page


def test_smoothed_labels_beside_moon_are_refused(capsys, tmp_path):
    options = ("--method", "moon(rigl)", "--set", "train.label_smoothing=0.1")
    code, _, err = sparsify(capsys, "run", "--out", tmp_path / "m", *SHORT, *options)
    assert code == 2 and "label-smoothing 0.1 would not enter" in err
