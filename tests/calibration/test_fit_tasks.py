"""Heads of tasks other than classification: the optimum, the coverage of intervals, and what the samples do not determine."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import evaluate, fit
from sparsify.errors import DataError, PassError, TrainingError
from sparsify.exporters.int8_samples import samples_of
from sparsify.figures import regression
from sparsify.ir.heads import head_metadata
from sparsify.parts.samples import TensorSamples
from sparsify.passes import AttachCalibrationHead

G = torch.Generator().manual_seed(0)


class Scaled(nn.Module):
    """Inputs, which are log-odds or log-probabilities, multiplied by constants that calibration should find."""

    def __init__(self, factor, shape=()) -> None:
        super().__init__()
        self.factor, self.shape = nn.Parameter(torch.as_tensor(factor)), shape

    def forward(self, x):
        return (x * self.factor).reshape(-1, *self.shape) if self.shape else x * self.factor


def headed(task, model, x, kind="temperature"):
    program = sp.trace(model, (x[:4],), task=task).eval()
    plain = {name: value.clone() for name, value in program.outputs(x).items()}
    program = sp.Pipeline((AttachCalibrationHead(kind=kind, task=task),))(program).eval()
    assert all(torch.equal(program.outputs(x)[name], value) for name, value in plain.items())
    return program


@pytest.mark.parametrize("shape", [(800,), (800, 1)])
def test_binary_probabilities_are_calibrated(shape):
    z = 2 * torch.randn(shape, generator=G)
    y = torch.rand(shape, generator=G) < z.sigmoid()
    program = headed("binary", Scaled(3.0), z)
    log = fit(program, TensorSamples(z, y.long()), task="binary")
    assert log.temperature == pytest.approx(3.0, rel=0.15)
    assert log.nll_after is not None and log.nll_before is not None and log.nll_after < log.nll_before
    found = program.outputs(z)
    torch.testing.assert_close(found["probabilities"], (found["logits"] / log.temperature).sigmoid())
    assert found["probabilities"].shape == shape


def test_each_label_has_a_temperature():
    z = 2 * torch.randn(2000, 3, generator=G)
    y = (torch.rand(2000, 3, generator=G) < z.sigmoid()).long()
    y[:, 2] = (z[:, 2] > 0).long()  # the logits are right throughout: the best temperature is 0
    program = headed("multilabel", Scaled([3.0, 0.5, 1.0]), z, "label-temperature")
    log = fit(program, TensorSamples(z, y), task="multilabel")
    found = program.tensor("calibration.temperature")
    assert found[:2].tolist() == pytest.approx([3.0, 0.5], rel=0.15) and found[2] == 1.0
    assert log.note == "not fitted for 1 of 3 labels (2), whose samples do not determine it"
    torch.testing.assert_close(
        program.outputs(z)["probabilities"], (z * torch.tensor([3.0, 0.5, 1.0]) / found).sigmoid()
    )


@pytest.mark.parametrize(("task", "shape", "axis"), [("dense", (4, 5), 1), ("sequence", (5, 4), 2)])
def test_positions_are_calibrated_over_their_classes(task, shape, axis):
    z = 1.5 * torch.randn(300, *shape, generator=G)
    rows = z.movedim(axis, -1).softmax(-1)
    y = torch.multinomial(rows.flatten(0, -2), 1, generator=G).reshape(rows.shape[:-1])
    y[0] = -100
    program = headed(task, Scaled(2.0), z)
    log = fit(program, TensorSamples(z, y), task=task)
    assert log.temperature == pytest.approx(2.0, rel=0.15)
    found = program.outputs(z)["probabilities"]
    torch.testing.assert_close(found.sum(axis), torch.ones(300, 5))
    torch.testing.assert_close(found, (2 * z / log.temperature).softmax(axis))


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_an_interval_holds_what_it_says(shape):
    x = torch.randn(1200, *shape, generator=G)
    y = x + 0.5 * torch.randn(1200, *shape, generator=G)
    program = headed("regression", Scaled(1.0), x, "interval")
    log = fit(program, TensorSamples(x[:400], y[:400]), task="regression", level=0.8)
    assert (log.kind, log.level, log.samples, log.note) == ("interval", 0.8, 400, None)
    outputs = evaluate(program, TensorSamples(x[400:], y[400:]))
    assert [*outputs] == ["prediction", "lower", "upper"]
    assert abs(regression.coverage(y[400:], outputs["lower"], outputs["upper"]) - 0.8) < 0.05
    errors = (x[:400] - y[:400]).abs()
    torch.testing.assert_close(program.tensor("calibration.reach"), errors.sort(0).values[320], msg="ceil(401 * 0.8)")
    assert log.to_dict()["nll_before"] is None


def test_the_level_stays_with_the_head(tmp_path):
    x = torch.randn(60, 1, generator=G)
    samples = TensorSamples(x, x + torch.randn(60, 1, generator=G))
    program = headed("regression", Scaled(1.0), x, "interval")
    assert head_metadata(program) == {"calibration": "interval"}  # not fitted: no level
    fit(program, samples, task="regression", level=0.8)
    program.save(tmp_path / "p.sparsify")
    loaded = sp.Program.load(tmp_path / "p.sparsify").eval()
    assert samples_of(loaded, [x], [x], None, batch=1).level == 0.8
    for precision in ("fp32", "int8"):
        given = {"calibration": [x], "held_out": [x]} if precision == "int8" else {}
        sp.export(loaded, tmp_path / "a.onnx", inputs=[x], precision=precision, **given)
        written = {entry.key: entry.value for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
        assert written["interval_level"] == "0.8"
    assert fit(loaded, samples, task="regression").level == 0.8  # the level that it was fitted for
    again = sp.Pipeline((AttachCalibrationHead(kind="interval", task="regression", replace=True),))(loaded).eval()
    assert fit(again, samples, task="regression").level == 0.9
    with pytest.raises(TrainingError, match=r"in \(0, 1\); found 90. Set 0\.9"):
        fit(again, samples, task="regression", level=90)


def test_targets_of_a_column_fit_an_interval_of_a_row():
    x, y = torch.randn(50, 1, generator=G), torch.randn(50, generator=G)
    program = headed("regression", Scaled(1.0), x, "interval")
    fit(program, TensorSamples(x, y), task="regression")
    assert program.tensor("calibration.reach").item() == pytest.approx((x[:, 0] - y).abs().sort().values[45].item())


def test_few_samples_are_said():
    x = torch.randn(8, generator=G)
    program = headed("regression", Scaled(1.0), x, "interval")
    log = fit(program, TensorSamples(x, x + 1), task="regression")
    assert log.note == "a rough estimate, from 8 held-out samples where 9 are needed"
    assert program.tensor("calibration.reach").item() == pytest.approx(1.0)


def test_an_interval_is_exported_and_proved(tmp_path):
    x = torch.randn(40, 6, generator=G)
    program = sp.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), (x[:4],), task="regression").eval()
    program = sp.Pipeline.parse("attach-calibration-head{kind=interval task=regression}")(program).eval()
    fit(program, TensorSamples(x, x[:, 0]), task="regression")
    result = sp.export(program, tmp_path / "a.onnx", inputs=[x])
    assert result.parity.samples and not result.parity.uncompared


@pytest.mark.parametrize(
    ("task", "model", "options", "words"),
    [
        (
            "regression",
            Scaled(1.0),
            {"kind": "temperature", "task": "regression"},
            "the kinds that fit are: interval. Set",
        ),
        (
            "regression",
            Scaled(1.0),
            {},
            "was traced for the task 'regression', but the option task is 'classification'. Set task=regression",
        ),
        (
            None,
            Scaled(1.0),
            {"kind": "interval", "task": "regression"},
            "returns logits, and task 'regression' reads 'prediction'",
        ),
        ("custom", Scaled(1.0), {"task": "custom"}, "the kinds that fit are: none. Set"),
        ("binary", Scaled(1.0), {}, "was traced for the task 'binary', but the option task is 'classification'"),
        (None, Scaled(1.0), {}, r"calibration needs class numbers.*or set the option task"),
        ("binary", Scaled(1.0), {"task": "nothing"}, "option task has no choice 'nothing'"),
    ],
)
def test_heads_that_do_not_fit_are_refused(task, model, options, words):
    program = sp.trace(model, (torch.randn(4),), task=task)
    with pytest.raises(PassError, match=words):
        sp.Pipeline((AttachCalibrationHead(**options),))(program)


def test_a_head_of_another_task_than_the_program_is_refused():
    """Scores of classes would become probabilities of labels, and the file would call them those of classes."""
    program = sp.trace(nn.Linear(4, 3), (torch.randn(2, 4),), task="classification")
    with pytest.raises(
        PassError, match="was traced for the task 'classification', but the option task is 'multilabel'"
    ):
        sp.Pipeline.parse("attach-calibration-head{kind=label-temperature task=multilabel}")(program)


@pytest.mark.parametrize("task", ["classification", "multilabel", sp.tasks.Custom(criterion=lambda a, b: a)])
def test_a_fit_for_another_task_than_the_head_is_refused(task):
    x = torch.randn(20, 4)
    program = headed("regression", nn.Linear(4, 1), x, "interval")
    words = r"returns prediction, lower, upper and has the head 'interval'.*Give task='regression'"
    with pytest.raises(TrainingError, match=words):
        fit(program, TensorSamples(x, torch.arange(20) % 3), task=task)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (torch.randn(20, 2), r"the targets are float32 \[20, 2\] for an output \['N', 1\]"),
        (torch.full((20,), torch.nan), "20 of 20 targets are NaN or infinite"),
        (torch.randn(0, 1), "there are no held-out samples"),
    ],
)
def test_held_out_targets_that_do_not_fit_are_refused(targets, words):
    x = torch.randn(20, 4)
    program = headed("regression", nn.Linear(4, 1), x, "interval")
    with pytest.raises(DataError, match=words):
        fit(program, TensorSamples(x[: len(targets)], targets), task="regression")
    assert program.tensor("calibration.reach").item() == 0
