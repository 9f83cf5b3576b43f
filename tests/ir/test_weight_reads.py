"""Every parameter of two dimensions or more has a row, with the reason it stays dense; the multiplications are counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify.ir import Program, WeightSite, trace
from sparsify.passes import InsertMasks, Pipeline

FLAT, STEPS = torch.linspace(-1, 1, 32).view(4, 8), torch.linspace(-1, 1, 160).view(4, 5, 8)


class Made(nn.Module):
    """A model of a function of its parameters and an input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 6)
        for step in range(5):
            state = self.cell(x[:, step], state)
        return state


def _program(model: nn.Module, x: Tensor) -> tuple[Program, dict[str, WeightSite]]:
    program = trace(model, (x,))
    return program, {site.name: site for site in program.maskable()}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("layer", "width", "macs"),
    [
        (nn.LSTM(8, 16, batch_first=True), 16, 5 * 4 * 16 * (8 + 16)),
        (nn.GRU(8, 6, batch_first=True, bidirectional=True), 12, 5 * 2 * 3 * 6 * (8 + 6)),
        (nn.LSTM(8, 16, batch_first=True, proj_size=4, num_layers=2), 4, 5 * (4 * 16 * (8 + 4 + 4 + 4) + 2 * 4 * 16)),
    ],
    ids=["lstm", "both ways", "projected"],
)
def test_recurrent_layers_are_counted_and_can_be_masked(layer, width, macs):
    program, sites = _program(Recurrent(layer, width), STEPS)
    assert program.costs().macs_dense == macs + 3 * width
    assert sum(site.macs for site in sites.values()) == macs + 3 * width
    names = {name for name, p in program.named_parameters() if p.ndim > 1}
    assert sites.keys() == names
    assert {site.kind for site in sites.values()} == {"recurrent", "linear"}
    assert all(site.skip is None and site.possible for site in sites.values())


def test_a_cell_is_counted_at_each_of_its_steps():
    program, sites = _program(Cell(), STEPS)
    assert {(site.kind, site.macs, site.uses) for site in sites.values()} == {
        ("recurrent", 5 * 18 * 8, 5),
        ("recurrent", 5 * 18 * 6, 5),
    }
    assert program.costs().macs_dense == 5 * 18 * (8 + 6)


def _standardised(model: Any, x: Tensor) -> Tensor:
    return F.linear(x, model.weight - model.weight.mean(1, keepdim=True))


IMPOSSIBLE: dict[str, tuple[nn.Module, Tensor, dict[str, str]]] = {
    "standardised": (Made(_standardised, weight=(4, 8)), FLAT, {"weight": "aten.mean"}),
    "low rank": (
        Made(lambda m, x: F.linear(x, m.weight + m.up @ m.down), weight=(4, 8), up=(4, 2), down=(2, 8)),
        FLAT,
        {"weight": "aten.add", "up": "aten.matmul", "down": "aten.matmul"},
    ),
    "orthogonal": (
        nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 4)),
        FLAT,
        {"0.parametrizations.weight.original": "computes from it"},
    ),
    "positions": (
        Made(lambda m, x: (x + m.places).mean(1) @ m.weight, places=(1, 5, 8), weight=(8, 4)),
        STEPS,
        {"places": "no product of matrices reads it, but aten.add"},
    ),
    "unread": (Made(lambda m, x: x @ m.weight, weight=(8, 4), spare=(3, 3)), FLAT, {"spare": "nothing reads it"}),
    "scale": (
        Made(lambda m, x: F.linear(x, m.weight * m.scale), weight=(4, 8), scale=(4, 1)),
        FLAT,
        {"scale": "aten.mul"},
    ),
    "distances": (
        Made(lambda m, x: torch.cdist(x, m.weight, p=1.0), weight=(4, 8)), FLAT, {"weight": "no product of matrices"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_a_weight_that_cannot_be_masked_says_why(kind):
    model, x, reasons = IMPOSSIBLE[kind]
    program, sites = _program(model, x)
    assert sites.keys() == {name for name, p in program.named_parameters() if p.ndim > 1}
    for name, reason in reasons.items():
        assert not sites[name].possible
        assert reason in str(sites[name].skip)
    assert {name for name, site in sites.items() if not site.possible} == reasons.keys()


def _frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    model[0].weight.requires_grad_(False)
    return model


DENSE: dict[str, tuple[nn.Module, Tensor, str, str]] = {
    "weight norm": (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 4)),
        FLAT, "0.parametrizations.weight.original1", "norm of each output",
    ),
    "own norm": (
        Made(lambda m, x: F.linear(x, m.weight / m.weight.norm(dim=1, keepdim=True)), weight=(4, 8)),
        FLAT, "weight", "also read other values that are computed from it",
    ),
    "bag": (
        nn.Sequential(nn.EmbeddingBag(9, 8), nn.Linear(8, 4)), torch.arange(12).view(4, 3) % 9, "0.weight",
        "an embedding table",
    ),
    "frozen": (_frozen(), FLAT, "0.weight", "frozen"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DENSE)
def test_a_weight_that_stays_dense_by_default_says_why_and_can_be_asked_for(kind):
    model, x, name, reason = DENSE[kind]
    program, sites = _program(model, x)
    assert sites[name].possible
    assert reason in str(sites[name].skip)
    asked = Pipeline((InsertMasks(weights=(name,)),))(program)
    assert list(asked.masks()) == [name]


MASKED: dict[str, tuple[nn.Module, Tensor, dict[str, tuple[str, int]]]] = {
    "transposed": (Made(lambda m, x: F.linear(x, m.w.t()), w=(8, 4)), FLAT, {"w": ("linear", 32)}),
    "reshaped": (Made(lambda m, x: x @ m.w.view(8, 4), w=(2, 4, 4)), FLAT, {"w": ("matmul", 32)}),
    "joined": (
        Made(lambda m, x: F.linear(x, torch.cat([m.a, m.b])), a=(3, 8), b=(1, 8)),
        FLAT,
        {"a": ("linear", 24), "b": ("linear", 8)},
    ),
    "cut": (
        Made(lambda m, x: F.linear(x, m.w[:4]) + F.linear(x, m.w[4:]), w=(8, 8)),
        FLAT,
        {"w": ("linear", 64)},
    ),
    "expanded": (
        Made(lambda m, x: torch.bmm(x, m.w.expand(x.shape[0], 8, 4)), w=(1, 8, 4)),
        STEPS,
        {"w": ("matmul", 5 * 32)},
    ),
    "einsum": (Made(lambda m, x: torch.einsum("nti,eio->no", x, m.w), w=(3, 8, 4)), STEPS, {"w": ("matmul", 480)}),
    "bilinear": (Made(lambda m, x: F.bilinear(x, x, m.w), w=(4, 8, 8)), FLAT, {"w": ("bilinear", 256)}),
    "volume": (
        nn.Sequential(nn.Conv3d(1, 4, 3), nn.Flatten()),
        torch.randn(2, 1, 3, 4, 4),
        {"0.weight": ("conv", 4 * 4 * 27)},
    ),
    "up": (
        nn.Sequential(nn.ConvTranspose1d(8, 4, 3), nn.Flatten()),
        torch.randn(2, 8, 5),
        {"0.weight": ("conv-transpose", 5 * 8 * 4 * 3)},
    ),
}


@pytest.mark.parametrize("kind", MASKED)
def test_a_computed_weight_with_the_same_positions_is_masked_at_its_parameter(kind):
    model, x, expected = MASKED[kind]
    program, sites = _program(model, x)
    assert {name: (site.kind, site.macs) for name, site in sites.items()} == expected
    assert program.costs().macs_dense == sum(macs for _, macs in expected.values())
    masked = Pipeline.parse("insert-masks{density=0.5}")(program)
    for name in expected:
        with torch.no_grad():
            program.get_parameter(name).masked_fill_(~masked.mask(name), 0.0)
    assert torch.equal(masked.eval()(x), program.eval()(x))


def test_attention_counts_its_products_of_activations():
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x) + (x @ x.transpose(1, 2)) @ x

    costs = trace(Attention(), (STEPS,)).costs()
    assert (costs.macs_dense, costs.unknown) == (4 * 5 * 5 * 8, ())


def test_operators_that_may_multiply_matrices_are_named():
    model = Made(lambda m, x: torch.fft.rfft(torch.cdist(x, m.w, p=1.0)).abs() @ m.v, w=(4, 8), v=(3, 2))
    costs = trace(model, (FLAT,)).costs()
    assert (costs.macs_dense, costs.unknown) == (6, ("aten.cdist", "aten.fft_rfft"))


def test_the_density_of_the_whole_model_counts_what_has_no_mask():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 5))
    costs = Pipeline.parse("insert-masks{density=0.5}")(trace(model, (torch.zeros(2, 3, dtype=torch.long),))).costs()
    assert (costs.params, costs.maskable, costs.active, costs.density) == (105, 60, 30, 0.5)
    assert costs.model_density == 75 / 105
