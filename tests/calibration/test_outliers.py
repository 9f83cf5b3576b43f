"""Scores of out-of-distribution inputs by every head, and the choice of one without test samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import Choice, choose_outlier_score, fit, outlier_scores
from sparsify.calibration.outliers import MIXTURES, SCRAMBLED, mixtures, scrambled
from sparsify.errors import TrainingError
from sparsify.figures import metrics
from sparsify.heads import HEADS, Outlier
from sparsify.ir.roles import TraceWarning
from sparsify.parts.samples import TensorSamples
from tests.cases import digits

X, Y = digits(1200)
TRAINING, VALIDATION, TEST = (
    TensorSamples(X[part], Y[part]) for part in (slice(600), slice(600, 900), slice(900, None))
)
INVERTED = TensorSamples(1 - X[900:], Y[900:])


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[:600]), Y[:600]).backward()
        optimizer.step()
    return sp.trace(model, (X[:2],)).eval()


def test_every_score_is_what_the_attached_head_returns(program):
    found = outlier_scores(program, TRAINING, VALIDATION, {"test": TEST})
    assert {*found} == {head.spec for head in HEADS.values() if isinstance(head, Outlier)}
    for spec in ("energy:1", "mahalanobis", "vim:0", "react:90", "knn:50:1000"):
        mine = sp.Pipeline.parse(f"attach-calibration-head{{kind={spec}}}")(program.clone()).eval()
        log = fit(mine, VALIDATION, training=TRAINING)
        assert log.kind == spec.partition(":")[0]
        score = mine.outputs(X[900:])["ood_score"].double()
        assert torch.allclose(score, found[spec]["test"], rtol=1e-3, atol=1e-3)


def test_the_choice_is_made_on_validation_samples_and_holds_elsewhere(program):
    choice = choose_outlier_score(program, TRAINING, VALIDATION)
    assert choice.outliers == (MIXTURES, SCRAMBLED) and choice.auroc[choice.chosen] == max(choice.auroc.values())
    assert choice == choose_outlier_score(program, TRAINING, VALIDATION)
    found = outlier_scores(program, TRAINING, VALIDATION, {"test": TEST, "outside": INVERTED})
    auroc = {spec: metrics.auroc(scores["test"], scores["outside"]) for spec, scores in found.items()}
    assert auroc[choice.chosen] > 0.9 and auroc[choice.chosen] > sorted(auroc.values())[len(auroc) // 2]
    given = choose_outlier_score(program, TRAINING, VALIDATION, {"inverted": INVERTED})
    inside = outlier_scores(program, TRAINING, VALIDATION, {"validation": VALIDATION, "outside": INVERTED})
    wanted = {spec: metrics.auroc(scores["validation"], scores["outside"]) for spec, scores in inside.items()}
    assert given == Choice(max(wanted, key=lambda spec: wanted[spec]), wanted, ("inverted",))


def test_mixtures_join_samples_of_different_classes():
    rows = torch.arange(300)
    mixed = mixtures(VALIDATION).batch(rows)
    order = Y[600:900].argsort(stable=True)
    partners = torch.empty_like(order)
    partners[order] = order.roll(150)
    assert torch.equal(mixed.inputs, (X[600:900] + X[600:900][partners]) / 2) and torch.equal(
        partners.sort().values, rows
    )
    assert bool((Y[600:900] != Y[600:900][partners]).all())
    turned = scrambled(VALIDATION).batch(rows).inputs
    assert torch.equal(turned.flatten(1).sort(1).values, X[600:900].flatten(1).sort(1).values) and not torch.equal(
        turned, X[600:900]
    )


def test_a_program_without_a_classifier_has_the_scores_of_its_logits():
    class Cosine(nn.Module):
        def forward(self, x):
            return (x[:, None] * torch.ones(3, 1)).sum(2) * torch.arange(1.0, 4.0)

    program = sp.trace(Cosine(), (torch.rand(2, 8),)).eval()
    samples = TensorSamples(torch.rand(40, 8), torch.arange(40) % 3)
    found = outlier_scores(program, samples, samples, {"test": samples})
    assert {*found} == {"msp", "max-logit", "energy:1", "gen:0.1:100", "odin:1000"}


class Halved(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)
        nn.init.zeros_(self.last.bias)  # so that only training makes the logits other than those of halved features

    def forward(self, x):
        return self.last(self.first(x.flatten(1)).relu()) / 2


def test_a_program_whose_logits_are_not_linear_in_features_has_the_scores_of_its_logits():
    program = sp.trace(Halved(), (X[:2],)).eval()
    choice = choose_outlier_score(program, TRAINING, VALIDATION)
    assert {*choice.auroc} == {"msp", "max-logit", "energy:1", "gen:0.1:100", "odin:1000"}


def test_a_program_of_one_batch_size_has_scores_of_its_features():
    class Four(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

        def forward(self, x):
            return self.last(self.first(x.reshape(4, 64)).relu())

    with pytest.warns(TraceWarning, match="fixes its batch size at 4"):
        program = sp.trace(Four(), (X[:4],)).eval()
    assert not program.dynamic_batch
    assert "mahalanobis" in outlier_scores(program, TRAINING, VALIDATION, {"test": TEST}, batch_size=4)


def test_whole_numbers_cannot_be_mixed():
    samples = TensorSamples(torch.arange(40).reshape(20, 2), torch.arange(20) % 2)
    with pytest.raises(
        TrainingError, match=r"inputs hold whole numbers, which cannot be mixed. Give outliers for the choice"
    ):
        choose_outlier_score(None, samples, samples)  # type: ignore[arg-type]


def test_statistics_of_training_samples_need_them(program):
    mine = sp.Pipeline.parse("attach-calibration-head{kind=knn}")(program.clone()).eval()
    with pytest.raises(TrainingError, match=r"'knn:50:1000' keeps statistics of training samples. Give them"):
        fit(mine, VALIDATION)
