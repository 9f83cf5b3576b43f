"""Widening: the model's own outputs and names stay, the unknown's logit is the row's, the two outputs are their formulas."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import PassError
from tests.cases import CASES, ConvBn, case, digits
from tests.ir.test_classifier import FOUND


def widened(model, text="widen-classifier", args=None):
    program = sp.trace(model, args or (digits()[0],))
    return program, sp.Pipeline.parse(text)(program)


def test_a_linear_model_by_hand():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        model.bias.zero_()
    _, program = widened(model, args=(torch.zeros(2, 2),))
    with torch.no_grad():
        program.weight("unknown_logit.weight").copy_(torch.tensor([[0.5, 0.5]]))
        program.weight("unknown_logit.bias").fill_(1.0)
    x = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    assert program.train()(x).tolist() == [[2.0, 0.0, 2.0], [0.0, 0.0, 1.0]]
    found = program.eval().outputs(x)
    assert list(found) == ["logits", "ood_score", "unknown"]
    assert found["logits"].tolist() == [[2.0, 0.0], [0.0, 0.0]]
    # e^2 = 7.389056: 7.389056 / (2 * 7.389056 + 1) = 0.468311; e = 2.718282: 1 / (2 + e) = 0.211942, e / (2 + e) = 0.576117
    assert found["ood_score"].tolist() == pytest.approx([0.468311, 0.211942], abs=1e-6)
    assert found["unknown"].tolist() == pytest.approx([0.468311, 0.576117], abs=1e-6)


def test_log_odds_by_hand():
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [0.0]]))
    _, program = widened(model, "widen-classifier{score=odds}", args=(torch.zeros(2, 1),))
    with torch.no_grad():
        program.weight("unknown_logit.weight").fill_(-1.0)
    with torch.no_grad():
        found = program.eval().outputs(torch.tensor([[1.0]]))
    assert float(found["ood_score"]) == pytest.approx(1.313262 + 1, abs=1e-6)  # ln(e + 1) + 1
    share = float(found["unknown"])
    assert float(found["ood_score"]) == pytest.approx(np.log((1 - share) / share), abs=1e-6)


@pytest.mark.parametrize("name", [name for name in FOUND if name != "normed"])
def test_the_unknown_goes_the_way_of_the_classes(name):
    """With the row of class 3, the unknown's logit is the logit of class 3, through whatever lies behind the layer."""
    before, program = widened(FOUND[name])
    with torch.no_grad():
        program.weight("zzz.unknown_logit.weight").copy_(program.weight("zzz.weight")[3:4])
        if name != "viewed":
            program.weight("zzz.unknown_logit.bias").copy_(program.weight("zzz.bias")[3:4])
    x = digits(24)[0]
    wide = program.train()(x)
    assert wide.shape == (24, 11) and torch.equal(wide[:, :10], before.train()(x))
    torch.testing.assert_close(wide[:, 10], wide[:, 3], rtol=1e-5, atol=1e-6)
    found = program.eval().outputs(x)
    shares = torch.cat([found["logits"], found["logits"][:, 3:4]], 1).softmax(1)
    torch.testing.assert_close(found["ood_score"], shares[:, :10].amax(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["unknown"], shares[:, 10], rtol=1e-5, atol=1e-6)


def test_the_user_s_names_shapes_and_checkpoint_stay():
    torch.manual_seed(3)
    model = ConvBn()
    _, program = widened(model)
    mine, theirs = program.state_dict(), model.state_dict()
    assert mine.keys() - theirs.keys() == {"fc.unknown_logit.weight", "fc.unknown_logit.bias"}
    again = ConvBn()
    again.load_state_dict({name: mine[name] for name in theirs})
    assert all(torch.equal(again.state_dict()[name], theirs[name]) for name in theirs)


def test_entries_of_the_row_are_those_of_classes_drawn_by_the_seed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    rows = [
        widened(model, f"widen-classifier{{seed={seed}}}")[1].weight("1.unknown_logit.weight") for seed in (0, 0, 1)
    ]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    same = rows[0][0].eq(model.get_parameter("1.weight"))
    assert bool(same.any(0).all()) and not bool(same.all(1).any()), "of several classes, each place of one of them"


@pytest.mark.filterwarnings("ignore:the logits do not depend")
def test_other_readers_of_the_logits_are_left_alone():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.aux = nn.Linear(64, 10), nn.Linear(10, 2)

        def forward(self, x):
            logits = self.head(x.flatten(1))
            return {"logits": logits, "aux": self.aux(logits)}

    before, program = widened(Both())
    x = digits()[0]
    assert torch.equal(program.train()(x)["aux"], before.train()(x)["aux"])
    assert program.train()(x)["logits"].shape == (16, 11)
    assert program.eval()(x)["logits"].shape == (16, 10)


# The formula of the score reads the same outputs of whatever network: every case has one of the two, in turn.
@pytest.mark.parametrize(
    ("name", "score"), [(found.name, ("known", "odds")[index % 2]) for index, found in enumerate(CASES)]
)
def test_every_case_is_exported_with_its_outputs(name, score, tmp_path):
    found = case(name)
    program = found.trace()
    program = sp.Pipeline.parse(f"widen-classifier{{score={score}}} | attach-calibration-head")(program).eval()
    sp.export(program, tmp_path / "m.onnx", inputs=list(found.args))
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    given = {i.name: x.numpy()[:5] for i, x in zip(session.get_inputs(), found.args, strict=True)}
    names = [o.name for o in session.get_outputs()]
    have = {key: np.asarray(value) for key, value in zip(names, session.run(None, given), strict=True)}
    assert {"logits", "probabilities", "ood_score", "unknown"} <= have.keys()
    assert have["logits"].shape == have["probabilities"].shape == (5, 10)
    assert have["ood_score"].shape == have["unknown"].shape == (5,)
    want = program.outputs(*(x[:5] for x in found.args))
    for key in ("ood_score", "unknown"):
        np.testing.assert_allclose(have[key], want[key].detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_widened_program_survives_the_file(tmp_path):
    _, program = widened(ConvBn(), "insert-masks{density=0.3} | widen-classifier")
    program.save(tmp_path / "p.sparsify")
    loaded = sp.Program.load(tmp_path / "p.sparsify")
    x = digits()[0]
    assert loaded.text() == program.text()
    assert torch.equal(loaded.eval().outputs(x)["ood_score"], program.eval().outputs(x)["ood_score"])
    assert loaded.train()(x).shape == (16, 11) and loaded.weight("fc.unknown_logit.weight").requires_grad


class Switching(nn.Module):
    """Another head in each mode."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x):
        return (self.a if self.training else self.b)(x.flatten(1))


class Scored(nn.Linear):
    """Returns what the pass would add."""

    def __init__(self):
        super().__init__(64, 10)

    def forward(self, x):
        logits = super().forward(x.flatten(1))
        return {"logits": logits, "ood_score": logits.amax(1)}


def test_a_widened_program_is_trained_on_without_the_wrapper():
    _, program = widened(ConvBn(), "insert-masks{density=0.3} | widen-classifier")
    x, y = digits(8)
    optimizer = torch.optim.SGD(program.train().parameters(), lr=0.1)
    trainer = sp.attach(sp.methods.static_random(density=0.3), program, optimizer, total_steps=1)
    trainer.loss(program(x), y).backward()
    trainer.step()
    assert program(x).shape == (8, 11) and program.eval()(x).shape == (8, 10)


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        (ConvBn(), "widen-classifier{score=best}", "no choice 'best'"),
        (
            ConvBn(),
            "widen-classifier | widen-classifier",
            r"an unknown class already.*leave the wrapper out \(rigl, not",
        ),
        (Scored(), "widen-classifier", r"already has an output 'ood_score', the name .* another name"),
        (Switching(), "widen-classifier", "'a.weight' in training and 'b.weight' in eval"),
        (nn.Sequential(ConvBn(), nn.LogSoftmax(1)), "widen-classifier", "before any softmax"),
        (ConvBn(), "insert-masks | fold-masks | widen-classifier", "needs a program of stage"),
    ],
)
def test_misuse_says_what_to_do(model, text, message):
    with pytest.raises(PassError, match=message):
        widened(model, text)
