"""Features are what the classifier reads: with its weight and bias they make the logits, whatever lies between."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import PassError
from sparsify.ir.features import classifier_of, features_over, with_features
from sparsify.parts.samples import TensorSamples
from tests.cases import CASES, digits
from tests.ir.test_classifier import FOUND, Behind

X, Y = digits(12)


def test_worked_by_hand():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 0.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        model[2].bias.copy_(torch.tensor([0.5, 0.25]))
    program = sp.trace(model, torch.rand(2, 2))
    x = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    found = features_over(program, TensorSamples(x, torch.zeros(2).long()))
    assert found.tolist() == [[2.0, 6.0], [0.0, 2.0]]
    last = classifier_of(program)
    assert (last.name, last.bias.tolist()) == ("2.weight", [0.5, 0.25])
    assert (found @ last.weight.T + last.bias).tolist() == [[14.5, -5.75], [4.5, -1.75]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(
    "pipeline", ["", "insert-masks{density=0.5}", "insert-masks{density=0.5} | fold-masks", "deploy"]
)
def test_every_case_has_features_that_make_its_logits(case, pipeline):
    program = case.trace()
    if pipeline:
        program = sp.Pipeline.parse(pipeline)(program)
    before, inputs = str(program), case.args if len(case.args) > 1 else case.args[0]
    samples = TensorSamples(inputs, torch.zeros(len(case.args[0])).long())
    found, last = features_over(program, samples, batch_size=3), classifier_of(program)
    logits = program.outputs(*case.args)["logits"]
    torch.testing.assert_close(found @ last.weight.T + last.bias, logits.detach(), rtol=1e-4, atol=1e-4)
    assert str(program) == before


@pytest.mark.parametrize("name", ["pooled", "viewed", "tokens", "last token", "turned", "normed"])
def test_looks_through_pooling_views_and_computed_weights(name):
    program = sp.trace(FOUND[name], (X,))
    if name == "pooled":
        with pytest.raises(PassError, match=r"a convolution over several positions"):
            features_over(program, TensorSamples(X, Y))
        return
    found, last = features_over(program, TensorSamples(X, Y), batch_size=5), classifier_of(program)
    logits = program.outputs(X)["logits"].detach()
    torch.testing.assert_close(found @ last.weight.T + last.bias, logits, rtol=1e-4, atol=1e-4)


def test_a_pooled_convolution_of_one_position_has_pooled_features():
    program = sp.trace(Behind(nn.Conv2d(6, 10, 1), lambda z: z.mean((2, 3))), (X,))
    found = features_over(program, TensorSamples(X, Y))
    assert found.shape == (12, 6)


@pytest.mark.parametrize("name", ["squeezenet", "permuted", "squeezed"])
def test_refuses_logits_that_are_not_linear_in_the_features(name):
    with pytest.raises(
        PassError,
        match=r"expected logits that are linear in the inputs of %.*max pool. Let its last layer make the logits",
    ):
        features_over(sp.trace(FOUND[name], (X,)), TensorSamples(X, Y))


def test_the_output_has_a_name_of_its_own():
    case = next(case for case in CASES if "features" in case.trace().output_names("eval"))
    copy, name = with_features(case.trace())
    assert name == "features_1" and copy.output_names("eval")[-1] == name
