"""The reference run of a masked program holds few masked copies of weights at a time."""

from __future__ import annotations

import torch
from torch import nn

import sparsify as sp
from sparsify.exporters.late_masks import with_late_masks
from sparsify.ir.nodes import MASK_OPERATORS


def masked() -> tuple[sp.Program, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    return sp.Pipeline.parse("insert-masks{density=0.5}")(sp.trace(model, (x,))).eval(), x


def test_each_mask_is_applied_just_before_its_weight_is_read() -> None:
    program, x = masked()
    before = program.text()
    phase = with_late_masks(program, "eval")
    masks = [node for node in phase.graph.nodes if node.target in MASK_OPERATORS]
    assert len(masks) == 3
    assert all(node.next in node.users for node in masks)
    assert torch.equal(phase(x)[0], program(x))
    assert program.text() == before


def test_a_weight_that_is_read_twice_is_masked_before_its_first_reader() -> None:
    shared = nn.Linear(6, 6)
    x = torch.randn(4, 6)
    program = sp.Pipeline.parse("insert-masks{density=0.5}")(
        sp.trace(nn.Sequential(shared, shared, nn.Linear(6, 2)).eval(), (x,))
    ).eval()
    phase = with_late_masks(program, "eval")
    (mask,) = [node for node in phase.graph.nodes if node.target in MASK_OPERATORS and len(node.users) == 2]
    assert mask.next in mask.users
    assert torch.equal(phase(x)[0], program(x))
