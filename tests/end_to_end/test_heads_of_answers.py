"""Several heads in one program: probabilities, sets of classes and a decision whether to answer, in the file, its int8 form and a run."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import fit, kind_of
from sparsify.errors import PassError, RecipeError, TrainingError
from sparsify.evaluation import evaluate
from sparsify.heads import named
from sparsify.ir.heads import attached
from sparsify.parts.samples import TensorSamples
from sparsify.reading.digits import digits_arrays
from sparsify.reports import headline
from sparsify.reports.summary_measures import figures
from sparsify.runs.preflight import heads
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run
from tests.cases import digits
from tests.end_to_end.test_work_kept import TINY, files

__all__ = ["files"]
BESIDE = "attach-calibration-head | attach-calibration-head{kind=lac:0.95} | attach-calibration-head{kind=accept:0.05}"


def untrained():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.fixture(scope="module")
def trained():
    x, y = digits(1797)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))  # a writer's digits stand together
    x, y = x[order], y[order]
    model = untrained()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:400]), y[:400]).backward()
        optimizer.step()
    return model, x, y


def test_sets_cover_and_accepted_answers_are_right_in_both_files(trained, tmp_path):
    model, x, y = trained
    program = sp.Pipeline.parse(BESIDE)(sp.trace(model, (x[:2],))).eval()
    log = fit(program, TensorSamples(x[400:1000], y[400:1000]))
    assert (log.kind, [one.head for one in log.heads]) == ("temperature", ["lac:0.95", "accept:0.05:0.1"])
    assert {name for name, _ in program.named_buffers()} == {
        "calibration.temperature", "calibration.lac.threshold", "calibration.accept.threshold",
    }  # fmt: skip
    given = {"inputs": [x[1000:]], "held_out": [x[400:1000]], "labels": y[400:1000], "calibration": [x[:256]]}
    program.save(tmp_path / "p.sparsify")
    for name, precision in (("fp32", "fp32"), ("int8", "int8")):
        source = program if precision == "int8" else sp.Program.load(tmp_path / "p.sparsify").eval()
        path = sp.export(source, tmp_path / f"{name}.onnx", precision=precision, **given).path
        props = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
        assert json.loads(props["heads"]) == {"prediction_set": "lac:0.95", "accept": "accept:0.05:0.1"}
        assert props["calibration"] == "temperature"
        session = onnxruntime.InferenceSession(path)
        names = [output.name for output in session.get_outputs()]
        assert names == ["logits", "probabilities", "prediction_set", "accept"]
        found = dict(zip(names, session.run(None, {session.get_inputs()[0].name: x[1000:].numpy()}), strict=True))
        answers = y[1000:].numpy()
        covered = found["prediction_set"][np.arange(797), answers].mean()
        assert abs(covered - 0.95) < 3 * (0.95 * 0.05 * (1 / 600 + 1 / 797)) ** 0.5
        wrong = found["logits"].argmax(1) != answers
        assert found["accept"].dtype == bool and 0.2 < found["accept"].mean() < 1
        assert wrong[found["accept"]].mean() < 0.05 < wrong.mean()


def test_each_class_is_covered_by_a_threshold_of_its_own(trained):
    model, x, y = trained
    steps = "attach-calibration-head | attach-calibration-head{kind=class-lac:0.8}"
    program = sp.Pipeline.parse(steps)(sp.trace(model, (x[:2],))).eval()
    log = fit(program, TensorSamples(x[400:], y[400:]))
    inside = program.outputs(x[400:])["prediction_set"].gather(1, y[400:, None])[:, 0]
    assert all(0.8 <= float(inside[y[400:] == k].double().mean()) < 0.82 for k in range(10))
    few = fit(program, TensorSamples(x[400:430], y[400:430])).heads[0]
    assert "which have too few held-out samples: every set holds them" in str(few.note) and log.heads[0].note is None


def test_a_head_that_reads_probabilities_is_attached_after_those(trained):
    model, x, _ = trained
    program = sp.trace(model, (x[:2],))
    with pytest.raises(
        PassError, match=r"the head 'lac' reads 'probabilities', which another head makes.*Attach that head first"
    ):
        sp.Pipeline.parse("attach-calibration-head{kind=lac}")(program)
    program = sp.Pipeline.parse(BESIDE)(program)
    with pytest.raises(PassError, match=r"already has an output 'prediction_set'"):
        sp.Pipeline.parse("attach-calibration-head{kind=raps}")(program)
    changed = sp.Pipeline.parse("attach-calibration-head{kind=raps:0.8 replace=true}")(program)
    assert [one.spec for one in attached(changed)] == ["temperature", "accept:0.05:0.1", "raps:0.8:0:0"]
    assert [
        one.spec for one in attached(sp.Pipeline.parse("attach-calibration-head{kind=vector replace=true}")(changed))
    ] == ["vector"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lac:1.5", r"'lac:1.5' is written lac:coverage: coverage is the share of sets .* in \(0, 1\); found 1.5"),
        ("lac:0.9:3", r"'lac' is written lac:coverage, found 'lac:0.9:3'"),
        ("accept:much", r"'accept:much' is written accept:risk:doubt: could not convert"),
        ("raps:0.9:0:3", r"free is a number of ranks without the penalty that is given"),
        ("lca", r"there is no calibration head 'lca'. Nearest: .*lac"),
    ],
)
def test_a_head_that_is_written_wrongly_is_refused(text, words):
    with pytest.raises(RecipeError, match=words):
        named(text)
    with pytest.raises(RecipeError, match=words):
        parse_recipe(None, {"heads": (text,)}).build_task()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"heads": ("ood-auto:1",)}, "'ood-auto' takes no values, found 'ood-auto:1'. Leave out what follows it"),
        ({"heads": ("ood_auto",)}, "no calibration head 'ood_auto'. Nearest: ood-auto. All: ood-auto, temp.*, scale"),
        ({"heads": ("auto",)}, "no calibration head 'auto'. Nearest: ood-auto. All: ood-auto"),
        ({"calibrator": "ood-auto"}, "'ood-auto' chooses a score and does not calibrate. Name 'ood-auto' in export.heads"),
        ({"calibrator": "ood-auto:2"}, "'ood-auto:2' chooses a score and does not calibrate. Name 'ood-auto' in export"),
        ({"calibrator": "auto:2"}, "'auto' takes no values, found 'auto:2'. Leave out what follows it"),
        ({"calibrator": "auti"}, "no calibration head 'auti'. Nearest: auto.* All: auto, temperature"),
    ],
)  # fmt: skip
def test_words_in_place_of_a_head_are_told_apart_from_heads(keys, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe(None, keys).build_task()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"heads": ("vector",)}, "'vector' calibrates what the task reads. Name it in export.calibrator"),
        ({"heads": ("lac:0.9", "aps:0.9")}, "lac:0.9 and aps:0.9 both make 'prediction_set'"),
        ({"heads": ("ood-auto",), "task": "binary"}, "'ood-auto' does not fit task 'binary'"),
        ({"heads": ("ood-auto", "energy")}, "ood-auto and energy both make 'ood_score'"),
        ({"heads": ("lac:0.9",), "task": "regression"}, "'lac:0.9' does not fit task 'regression'"),
    ],
)
def test_heads_that_cannot_be_together_are_refused(keys, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe(None, keys).build_task()


def test_the_heads_of_a_saved_program_stay_unless_others_take_their_place(trained):
    model, x, _ = trained
    program = sp.Pipeline.parse(BESIDE)(sp.trace(model, (x[:2],)))

    def after(**keys):
        found = program.clone()
        return [one.spec for one in attached(sp.Pipeline(heads(parse_recipe(None, keys), found))(found))]

    assert after() == ["temperature", "lac:0.95", "accept:0.05:0.1"]
    assert after(calibrator="vector") == ["vector", "lac:0.95", "accept:0.05:0.1"]
    assert after(heads=("raps:0.9",)) == ["temperature", "accept:0.05:0.1", "raps:0.9:0:0"]
    assert after(calibrator="vector", heads=("aps:0.9",)) == ["vector", "accept:0.05:0.1", "aps:0.9"]
    assert heads(parse_recipe(None, {"heads": ("lac:0.95",)}), program) == () and kind_of(program) == "temperature"


def test_a_run_has_the_heads_of_its_recipe(files, tmp_path):
    keys = {
        **TINY,
        "epochs": 1,
        "model": f"{files}/m.py:build",
        "data": f"{files}/d.py:chance",
        "heads": ("aps:0.8", "accept:0.5"),
    }
    report = run(parse_recipe(None, keys), tmp_path / "a", timed=False)
    assert report["outputs"] == ["logits", "probabilities", "prediction_set", "accept"]
    first, second = report["model"]["calibration"]["heads"]
    assert (first["head"], first["outputs"], first["of"], first["samples"]) == (
        "aps:0.8",
        ("prediction_set",),
        "held-out",
        20,
    )
    assert second["head"] == "accept:0.5:0.1"
    assert tomllib.loads((tmp_path / "a" / "recipe.toml").read_text())["export"]["heads"] == ["aps:0.8", "accept:0.5"]
    assert "aps:0.8, on the samples of its fit" in (tmp_path / "a" / "report.html").read_text()


def test_a_run_measures_sets_and_accepted_answers_of_its_models_and_int8_files(tmp_path):
    keys = {
        **TINY,
        "data": "digits",
        "model": "sparsify.loading:digits_cnn",
        "sparsity": 0.8,
        "baseline": True,
        "heads": ("lac:0.9", "accept:0.1"),
        "export_precision": "int8",
    }
    report = run(parse_recipe(None, keys), tmp_path, timed=False)
    metrics, samples = json.loads((tmp_path / "metrics.json").read_text()), len(digits_arrays()["y_test"])
    for name in ("model", "dense"):
        beside = evaluate(tmp_path / f"{name}.onnx", "digits")["model"]
        eight = evaluate(tmp_path / f"{name}-int8.onnx", "digits")["model"]
        for key in ("prediction_set", "accept"):
            assert metrics[name][key] == beside[key] == metrics[name]["int8"]["fp32"][key]
            assert metrics[name]["int8"][key] == eight[key]
    row = metrics["model"]["prediction_set"]
    assert sum(size["samples"] for size in row["sizes"]) == samples and len(row["class_coverage"]) == 10
    assert [head["values"] for head in metrics["model"]["calibration"]["heads"]] == [
        {"coverage": 0.9},
        {"risk": 0.1, "doubt": 0.1},
    ]
    shown = dict(headline(report, None).rows)
    assert len(shown["coverage of prediction sets, asked for: 0.9"]) == 4
    assert f"{metrics['model']['int8']['accept']['coverage']:.4f}" in shown["share of accepted answers"]
    page = (tmp_path / "report.html").read_text()
    for words in ("Prediction sets and accepted answers", "coverage by class", "; 90 % were asked for", "At most 10 %"):
        assert words in page
    assert figures(metrics["model"])["prediction_set.mean_size"] == row["mean_size"]


def test_a_run_chooses_a_score_and_compares_all(files, tmp_path):
    keys = {
        **TINY,
        "epochs": 1,
        "data": "digits",
        "model": "sparsify.loading:digits_cnn",
        "ood": ("photos",),
        "heads": ("ood-auto",),
    }
    report = run(parse_recipe(None, keys), tmp_path / "a", timed=False)
    model = report["model"]
    choice = model["ood_choice"]
    assert report["outputs"] == ["logits", "probabilities", "ood_score"] and len(choice["auroc"]) == 15
    assert model["calibration"]["heads"][0]["head"] == choice["chosen"] and model["ood_threshold"] is not None
    scores = model["ood"]["photos"]["scores"]
    assert {"maximum probability", "entropy", "energy", "ood_score", "mahalanobis", "vim:0", "ash-s:90"} <= {*scores}
    assert scores["ood_score"]["auroc"] == pytest.approx(scores[choice["chosen"]]["auroc"], abs=1e-3)
    assert "No test input and no set above was used for this choice" in (tmp_path / "a" / "report.html").read_text()
    assert tomllib.loads((tmp_path / "a" / "recipe.toml").read_text())["export"]["heads"] == ["ood-auto"]
    session = onnxruntime.InferenceSession(tmp_path / "a" / "model.onnx")
    props = session.get_modelmeta().custom_metadata_map
    assert props["recipe_hash"] == report["recipe_hash"]
    assert (
        json.loads(props["heads"]) == {"ood_score": choice["chosen"]}
        and float(props["ood_threshold"]) == model["ood_threshold"]
    )


def test_a_choice_without_outliers_is_refused_before_training(files, tmp_path):
    (tmp_path / "d.py").write_text(
        "import torch\n\ndef tokens():\n    x = torch.randint(0, 9, (60, 5))\n    return [(x, x[:, 0] % 2)] * 2\n"
        "\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.e = torch.nn.Embedding(9, 8)\n"
        "        self.f = torch.nn.Linear(8, 2)\n\n    def forward(self, x):\n        return self.f(self.e(x).mean(1))\n"
    )
    keys = {**TINY, "data": f"{tmp_path}/d.py:tokens", "model": f"{tmp_path}/d.py:Net", "heads": ("ood-auto",)}
    with pytest.raises(TrainingError, match="the inputs hold whole numbers, which cannot be mixed"):
        run(parse_recipe(None, keys), tmp_path / "a", timed=False)
    assert not (tmp_path / "a" / "model.onnx").exists()


NO_FEATURES = {
    "Linear(64, 10)": ("self.f(x.flatten(1)).tanh()", "something else between this layer and the logits .*, such as an activation"),
    "Conv2d(1, 10, 1)": ("self.f(x).amax((2, 3))", "something else between this layer and the logits .*, such as .* a max pool"),
    "Conv2d(8, 10, 8, groups=2)": ("self.f(x.expand(-1, 8, -1, -1)).flatten(1)", "a convolution in groups, whose classes read diff"),
}  # fmt: skip


@pytest.mark.parametrize("layer", NO_FEATURES)
def test_a_score_of_features_that_the_model_does_not_have_is_refused_before_training(files, tmp_path, layer):
    logits, reason = NO_FEATURES[layer]
    (tmp_path / "m.py").write_text(
        "import torch\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.f = torch.nn.{layer}\n\n    def forward(self, x):\n        return {logits}\n"
    )
    keys = {**TINY, "epochs": 1, "data": "digits", "model": f"{tmp_path}/m.py:Net"}
    with pytest.raises(
        PassError, match=f"the head 'mahalanobis' reads the features .* this model has none: .*{reason}"
    ) as raised:
        run(parse_recipe(None, {**keys, "heads": ("mahalanobis",)}), tmp_path / "a", timed=False)
    assert "Heads that make ood_score without features: msp, max-logit, energy, gen, odin." in str(raised.value)
    assert not (tmp_path / "a" / "program.sparsify").exists()
    if layer != "Linear(64, 10)":
        return
    report = run(parse_recipe(None, {**keys, "heads": ("ood-auto",)}), tmp_path / "b", timed=False)
    assert "mahalanobis" not in report["model"]["ood_choice"]["auroc"]
