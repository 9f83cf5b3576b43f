"""A file is measured under shift as on a file of images that were shifted before; what cannot be shifted is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from sparsify.errors import EvaluationError
from sparsify.evaluation import Preparation, evaluate, write_evaluation
from sparsify.pages.shifts import sentence
from sparsify.reading.digits import digits_arrays
from sparsify.reading.shifts import BLUR, KINDS, shifted
from tests.end_to_end.commands import command
from tests.evaluation.files import classifier, fitted, regression

X, Y = (digits_arrays()[name] for name in ("x_test", "y_test"))
EVERYTHING = ("logits", "probabilities", "prediction_set", "accept", "ood_score")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = classifier(tmp_path_factory.mktemp("files") / "m.onnx", outputs=EVERYTHING)
    return path, evaluate(path, "digits", shift=True)


@pytest.mark.parametrize(("kind", "severity"), [("noise", 5), ("blur", 3), ("brightness", 2)])
def test_figures_are_those_of_images_that_were_shifted_before(measured, tmp_path, kind, severity):
    path, report = measured
    np.savez(tmp_path / "d.npz", x_test=shifted(X[:, None], kind, severity), y_test=Y)
    want, found = evaluate(path, tmp_path / "d.npz")["model"], report["model"]["shift"][kind][severity - 1]
    for when in ("before", "after"):
        for key in ("accuracy", "ece"):
            assert found[when][key] == want[when][key]
        gap = found[when]["confidence"] - found[when]["accuracy"]
        assert gap == pytest.approx(want[when]["signed_gap"])
    assert found["set_coverage"] == want["prediction_set"]["coverage"]
    assert (found["accepted"], found["accepted_risk"]) == (want["accept"]["coverage"], want["accept"]["risk"])


def test_the_report_has_every_kind_and_severity(measured):
    _, report = measured
    model, shift = report["model"], report["model"]["shift"]
    assert list(shift) == ["unchanged", *KINDS] and [len(shift[kind]) for kind in KINDS] == [5, 5, 5]
    assert shift["unchanged"]["after"]["ece"] == model["after"]["ece"] and report["data"]["shift"]["blur"] == [*BLUR]
    assert shift["noise"][4]["after"]["accuracy"] < shift["unchanged"]["after"]["accuracy"] - 0.05
    assert shift["unchanged"].keys() == {
        "before", "after", "ood_score", "set_coverage", "set_size", "accepted", "accepted_risk",
    }  # fmt: skip
    json.dumps(report, allow_nan=False)


def test_floats_in_unit_range_are_shifted_as_bytes_are(tmp_path):
    np.savez(tmp_path / "d.npz", x_test=X[:, None].astype("f4") / 255, y_test=Y)
    path = classifier(tmp_path / "m.onnx", metadata={})
    found = evaluate(path, tmp_path / "d.npz", shift=True, preparation=Preparation((0.3,), (0.5,), 1.0))["model"][
        "shift"
    ]
    bytewise = evaluate(path, "digits", shift=True, preparation=Preparation((0.3,), (0.5,), 255))["model"]["shift"]
    for kind in KINDS:
        ours, theirs = (rows[kind][2]["after"]["confidence"] for rows in (found, bytewise))
        assert ours == pytest.approx(theirs, abs=2e-3)


def test_the_command_and_the_page(measured, tmp_path):
    path, report = measured
    other = classifier(tmp_path / "other.onnx", outputs=("logits",), weight=fitted(1, 60))
    code, out, _ = command("evaluate", path, "--data", "digits", "--against", other, "--shift", "--out", tmp_path / "e")
    assert code == 0 and "noise 5" in out and sentence(report["model"]["shift"]) in out
    kept = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert kept["model"]["shift"] == report["model"]["shift"] and "after" not in kept["against"]["shift"]["unchanged"]
    page = (tmp_path / "e" / "evaluation.html").read_text()
    assert "Under shift" in page and "wrong of the accepted" in page and "6 % of the shorter side" in page
    plain = evaluate(path, "digits")
    write_evaluation(plain, tmp_path / "plain")
    assert "shift" not in plain["model"] and "Under shift" not in (tmp_path / "plain" / "evaluation.html").read_text()


def test_what_is_no_image_and_what_is_no_classifier_is_refused(tmp_path):
    found = load_diabetes()
    np.savez(tmp_path / "r.npz", x_test=found.data.astype("f4"), y_test=found.target.astype("f4"))
    path = regression(tmp_path / "r.onnx", np.ones(11, "f4"))
    with pytest.raises(
        EvaluationError, match=r"--shift measures the confidence of classifiers, and .* is for regression"
    ):
        evaluate(path, tmp_path / "r.npz", shift=True)
    np.savez(tmp_path / "z.npz", x_test=X[:, None].astype("f4") / 255 - 0.5, y_test=Y)
    code, _, err = command("evaluate", classifier(tmp_path / "m.onnx"), "--data", tmp_path / "z.npz", "--shift")
    assert code == 2 and "no pixels in [0, 1]. Leave it out" in " ".join(err.split())
