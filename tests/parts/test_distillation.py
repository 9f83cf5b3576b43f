"""The teacher's term by hand, against the definition in the library, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sparsify.parts.distillation import Distillation, distillation_loss, yes_no_distillation_loss

LOGITS = torch.tensor([[math.log(4.0), 0.0], [0.0, 0.0]])
TEACHER = torch.tensor([[0.0, math.log(4.0)], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("temperature", "by_hand"),
    [
        # softmaxes (0.8, 0.2) and (0.2, 0.8): 0.2 log(0.2 / 0.8) + 0.8 log(0.8 / 0.2) = 0.6 log 4, the other sample 0, halved
        (1.0, 0.3 * math.log(4.0)),
        # logits log 2: (2/3, 1/3) and (1/3, 2/3), so log 2 / 3; times 4, halved
        (2.0, 2.0 * math.log(2.0) / 3),
    ],
)
def test_by_hand(temperature, by_hand):
    assert float(distillation_loss(LOGITS, TEACHER, temperature)) == pytest.approx(by_hand, rel=1e-6)
    joined = Distillation(0.25, temperature).joined(torch.tensor(2.0), torch.tensor(by_hand))
    assert float(joined) == pytest.approx(1.5 + 0.25 * by_hand, rel=1e-6)


@pytest.mark.parametrize("shape", [(7, 5), (3, 5, 4, 2)])
def test_it_is_the_divergence_over_the_classes(shape):
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    wanted = nn.functional.kl_div(
        (logits / 3).log_softmax(1), (teacher / 3).log_softmax(1), reduction="none", log_target=True
    )
    assert torch.allclose(distillation_loss(logits, teacher, 3.0), 9 * wanted.sum(1).mean())


def test_its_gradient_is_that_of_the_definition_and_leaves_the_teacher_alone():
    logits, teacher = LOGITS.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    distillation_loss(logits, teacher, 2.0).backward()
    wanted = 2.0 * ((LOGITS / 2).softmax(1) - (TEACHER / 2).softmax(1)) / len(LOGITS)  # T (p - q) / N
    assert teacher.grad is None and torch.allclose(logits.grad, wanted, atol=1e-7)
    assert float(distillation_loss(TEACHER, TEACHER, 2.0)) == 0.0


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_answers_of_yes_or_no_are_two_classes(temperature):
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(40, generator=generator, dtype=torch.float64) for _ in range(2))
    classes = [torch.stack([torch.zeros_like(z), z], 1) for z in (logits, teacher)]
    found = yes_no_distillation_loss(logits, teacher, temperature)
    assert torch.allclose(found, distillation_loss(*classes, temperature))
    assert float(yes_no_distillation_loss(teacher, teacher, temperature)) == 0.0
