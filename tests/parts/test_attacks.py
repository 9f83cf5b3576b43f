"""Attacks by hand: signs, steps, the box."""

from __future__ import annotations

import torch

from sparsify.parts.attacks import Attack, perturbed

X = torch.tensor([[0.0, 1.0, -1.0]])


def linear(x):
    return (x * torch.tensor([2.0, -3.0, 0.0])).sum()


def test_steps_follow_the_signs_and_end_at_the_box():
    one = perturbed(linear, X, torch.zeros_like(X), Attack(radius=0.5, step_size=0.2, iterations=1))
    torch.testing.assert_close(one, torch.tensor([[0.2, 0.8, -1.0]]))
    three = perturbed(linear, X, torch.zeros_like(X), Attack(radius=0.5, step_size=0.2, iterations=3))
    torch.testing.assert_close(three, torch.tensor([[0.5, 0.5, -1.0]]))


def test_the_start_is_kept_in_the_box_and_nothing_needs_a_gradient():
    start = torch.tensor([[-0.1, 0.0, 9.0]])
    with torch.no_grad():
        moved = perturbed(linear, X, start, Attack(radius=0.5, step_size=0.2, iterations=1))
    torch.testing.assert_close(moved, torch.tensor([[0.1, 0.8, -0.5]]))
    assert not moved.requires_grad and X.tolist() == [[0.0, 1.0, -1.0]]


def test_each_iteration_uses_the_gradient_where_it_stands():
    # The slope of -(x - 1)^2 turns at 1: 0 -> 0.6 -> 1.2 -> 0.6.
    moved = perturbed(lambda x: -(x - 1).square().sum(), torch.zeros(1), torch.zeros(1), Attack(2.0, 0.6, 3))
    torch.testing.assert_close(moved, torch.tensor([0.6]))
