"""Coverage of prediction sets and risk of accepted answers on samples that no head was fitted to, over many splits, dense and sparse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import evaluate
from sparsify.heads import HeldOut, named, run
from sparsify.parts.samples import TensorSamples
from sparsify.tasks import Classification
from tests.cases import digits

TRAINED, STEPS, HELD_OUT, SPLITS = 500, 100, 600, 30


@pytest.fixture(scope="module", params=[None, 0.1], ids=["dense", "sparse"])
def judged(request):
    """Logits and classes of digits that the model was not trained on; it errs at some of them."""
    x, y = digits(1797)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))  # a writer's digits stand together
    x, y = x[order], y[order]
    torch.manual_seed(0)
    program = sp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), (x[:2],)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1, momentum=0.9)
    method = sp.methods.dense() if request.param is None else sp.methods.static_random(density=request.param)
    trainer = sp.attach(method, program, optimizer, total_steps=STEPS)
    for step in range(STEPS):
        rows = torch.arange(100) + 100 * (step % 5)
        optimizer.zero_grad()
        trainer.loss(program(x[rows]), y[rows]).backward()
        trainer.step()
    trainer.finish()
    assert request.param is None or sum(int(m.sum()) for m in program.masks().values()) < 0.11 * (64 * 64 + 64 * 10)
    logits = evaluate(program.eval(), TensorSamples(x[TRAINED:], y[TRAINED:]))["logits"]
    assert 0.02 < float((logits.argmax(1) != y[TRAINED:]).double().mean()) < 0.4
    return logits, y[TRAINED:]


def answers(spec, judged, seed):
    """What a head that is fitted to a random part says of the rest, with logits and classes of the rest."""
    logits, labels = judged
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    part, rest = order[:HELD_OUT], order[HELD_OUT:]
    head, table = named(spec), logits.softmax(1)
    held = HeldOut(logits[part], labels[part], Classification(), others={"probabilities": table[part]})
    before = {name: value.double() for name, value in head.identity(("N", table.shape[1])).items()}
    (made,) = head.apply(run, table[rest], head.fit(held, before).values, Classification)
    return made, logits[rest], labels[rest]


@pytest.mark.parametrize("coverage", [0.9, 0.95])
@pytest.mark.parametrize("kind", ["lac", "aps", "raps"])
def test_sets_cover_what_they_promise_within_binomial_error(judged, kind, coverage):
    found = []
    for seed in range(SPLITS):
        sets, _, labels = answers(f"{kind}:{coverage}", judged, seed)
        found.append(float(sets[torch.arange(len(labels)), labels].double().mean()))
    fitted_to = HELD_OUT * (0.7 if kind == "raps" else 1)  # RAPS chooses its penalty on the others
    error = (coverage * (1 - coverage) * (1 / fitted_to + 1 / (len(judged[1]) - HELD_OUT))) ** 0.5
    assert max(abs(one - coverage) for one in found) < 4 * error
    mean = sum(found) / SPLITS
    assert abs(mean - coverage) < 1 / fitted_to + 3 * error / SPLITS**0.5


@pytest.mark.parametrize("risk", [0.05, 0.1])
def test_accepted_answers_are_wrong_no_more_often_than_was_asked(judged, risk):
    wrong, accepted, above = 0, 0, 0
    for seed in range(SPLITS):
        given, logits, labels = answers(f"accept:{risk}:0.1", judged, seed)
        errors = (logits.argmax(1) != labels) & given
        wrong, accepted = wrong + int(errors.sum()), accepted + int(given.sum())
        noise = 2 * (risk * (1 - risk) / max(1, int(given.sum()))) ** 0.5
        above += int(errors.sum()) > (risk + noise) * int(given.sum())
    assert accepted > 0.2 * SPLITS * (len(judged[1]) - HELD_OUT)
    assert wrong / accepted < risk and above <= 0.1 * SPLITS


def test_raps_takes_its_usual_penalty_where_there_are_too_few_samples_to_choose_one():
    table = torch.tensor(
        [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25], [0.3, 0.4, 0.3]]
    ).double()
    answers = torch.tensor([0, 1, 2, 0, 1])
    held = HeldOut(table.log(), answers, Classification(), others={"probabilities": table})
    fitted = named("raps:0.6").fit(held, {})
    assert (fitted.figures["penalty"], fitted.figures["free"], fitted.note) == (0.01, 1.0, None)
    assert fitted.figures["coverage"] >= 0.6 and torch.allclose(
        fitted.values["charge"], torch.tensor([0, 0.01, 0.02]).double()
    )
