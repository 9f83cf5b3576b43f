"""The scale after a prediction, by hand, in both phases, through a file and through ONNX Runtime."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import fit
from sparsify.errors import DataError, PassError, TrainingWarning
from sparsify.parts.samples import TensorSamples
from sparsify.passes import fit_scale
from sparsify.passes.scale_prediction import scale_of, set_scale


def scaled(model, x, **options):
    program = sp.Pipeline.parse("scale-prediction")(sp.trace(model, (x,), task="regression", **options))
    return program


def by_hand():
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-2.0]]))
    return model


def test_a_column_has_its_own_mean_and_deviation():
    program = scaled(by_hand(), torch.zeros(2, 1))
    x = torch.tensor([[1.0], [3.0]])
    assert program.train()(x).tolist() == [[1.0, -2.0], [3.0, -6.0]]
    set_scale(program, torch.tensor([100.0, 7.0]), torch.tensor([10.0, 0.5]))
    for phase in (program.train(), program.eval()):
        assert phase(x).tolist() == [[110.0, 6.0], [130.0, 4.0]]
    program.train()(x).sum().backward()
    assert program.get_parameter("weight").grad.tolist() == [[40.0], [2.0]]  # 10 and 0.5 times the sum of x


@pytest.mark.parametrize("shape", [(), (1,), (4, 3)])
def test_an_output_of_another_shape_has_one_number(shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, max(1, torch.Size(shape).numel()))

        def forward(self, x):
            return self.fc(x).reshape(-1, *shape)

    program, x = scaled(Net(), torch.randn(2, 2)).eval(), torch.randn(5, 2)
    before = program(x)
    assert [len(value) for value in scale_of(program)] == [1, 1]
    set_scale(program, torch.tensor([3.0]), torch.tensor([2.0]))
    assert torch.equal(program(x), before * 2 + 3)


def test_mixed_precision_keeps_the_units():
    """A mean of thousands in bfloat16 would leave no digits for the differences."""
    program = scaled(by_hand(), torch.zeros(2, 1)).train()
    set_scale(program, torch.tensor([4096.0, 4096.0]), torch.ones(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert program(torch.ones(2, 1)).tolist() == [[4097.0, 4094.0]] * 2


def test_it_is_saved_masked_folded_and_exported(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    program = scaled(model, torch.randn(4, 6))
    set_scale(program, torch.tensor([150.0, 0.0, -2.0]), torch.tensor([70.0, 1e-3, 1.0]))
    program = sp.Pipeline.parse("insert-masks{density=0.5} | fold-masks | deploy | fold-batch-norm")(program).eval()
    program.save(tmp_path / "p.sparsify")
    x = torch.randn(8, 6)
    assert torch.equal(sp.Program.load(tmp_path / "p.sparsify").eval()(x), program(x))
    sp.export(program, tmp_path / "m.onnx", inputs=(x,), task="regression")
    found = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(["prediction"], {"input": x.numpy()})[0]
    assert torch.allclose(torch.from_numpy(found), program(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (None, r"returns logits, and no prediction\. Only the targets of a regression have a scale"),
        (
            "classification",
            "was traced for the task 'classification', and only the targets of a regression have a scale",
        ),
    ],
)
def test_what_is_no_regression_has_no_scale(task, words):
    program = sp.trace(by_hand(), torch.zeros(2, 1), task=task)
    with pytest.raises(PassError, match=words):
        sp.Pipeline.parse("scale-prediction")(program)
    with pytest.raises(PassError, match=words):
        fit_scale(program, torch.rand(4, 2))


@pytest.mark.parametrize("order", ["{head} | scale-prediction", "scale-prediction | {head}"])
def test_bounds_are_about_the_scaled_prediction_whichever_comes_first(order):
    passes = order.format(head="attach-calibration-head{kind=interval task=regression}")
    program = sp.Pipeline.parse(passes)(sp.trace(by_hand(), torch.zeros(2, 1), task="regression"))
    targets = torch.tensor([[90.0, 1.0], [110.0, 5.0]])
    fit_scale(program, targets)
    x = torch.linspace(-1, 1, 20)[:, None]
    off = torch.tensor([7.0, 0.25])
    fit(program, TensorSamples(x, program.eval()(x) + off), task="regression")
    found = program.outputs(torch.tensor([[1.0], [3.0]]))
    assert found["prediction"].tolist() == [[110.0, -1.0], [130.0, -9.0]]
    torch.testing.assert_close(found["lower"], torch.tensor([[103.0, -1.25], [123.0, -9.25]]))
    torch.testing.assert_close(found["upper"], torch.tensor([[117.0, -0.75], [137.0, -8.75]]))


def test_a_model_that_reads_its_own_prediction_reads_what_it_made():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(1, 1)

        def forward(self, x):
            y = self.fc(x)
            return {"prediction": y, "double": 2 * y}

    task = sp.tasks.Regression(criterion=lambda found, target: ((found["prediction"] - target) ** 2).mean())
    program = sp.trace(Twice(), torch.zeros(2, 1), task=task).eval()
    program = sp.Pipeline.parse("attach-calibration-head{kind=interval task=regression} | scale-prediction")(program)
    x = torch.rand(3, 1)
    made = program.eval().outputs(x)["prediction"]
    set_scale(program, torch.tensor([100.0]), torch.tensor([10.0]))
    found = program.outputs(x)
    assert torch.equal(found["prediction"], 10 * made + 100) and torch.equal(found["double"], 2 * made)
    assert torch.equal(found["lower"], found["prediction"]) and torch.equal(found["upper"], found["prediction"])


def test_it_is_refused_twice():
    with pytest.raises(PassError, match="is scaled already"):
        sp.Pipeline.parse("scale-prediction")(scaled(by_hand(), torch.zeros(2, 1)))


def test_a_scale_is_fitted_to_targets_in_place():
    program = sp.trace(by_hand(), torch.zeros(2, 1), task="regression")
    targets = torch.tensor([[90.0, 7.0], [110.0, 7.0]])
    with pytest.warns(TrainingWarning, match=r"columns of one value, which are only shifted: 1 \(always 7\)"):
        mean, deviation = fit_scale(program, targets)
    assert (mean.tolist(), deviation.tolist()) == ([100.0, 7.0], [10.0, 1.0])
    for phase in (program.train(), program.eval()):
        assert phase(torch.tensor([[1.0], [3.0]])).tolist() == [[110.0, 5.0], [130.0, 1.0]]
    fit_scale(program, targets * torch.tensor([2.0, 1.0]) + torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    assert [value.tolist() for value in scale_of(program)] == [[200.0, 7.0], [20.0, 1.0]]


def test_targets_that_fit_no_prediction_have_no_scale():
    program = sp.trace(by_hand(), torch.zeros(2, 1), task="regression")
    with pytest.raises(DataError, match=r"the targets are float32 \[4, 3\] for an output \['N', 2\]"):
        fit_scale(program, torch.randn(4, 3))
    with pytest.raises(DataError, match=r"float32 \[0, 2\] holds none"):
        fit_scale(program, torch.randn(0, 2))
    with pytest.raises(PassError, match="was traced for the task 'multilabel', and only the targets of a regression"):
        fit_scale(sp.trace(by_hand(), torch.zeros(2, 1), task="multilabel"), torch.randn(4, 2))
    assert scale_of(program) is None
