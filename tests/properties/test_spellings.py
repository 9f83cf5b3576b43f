"""Passes see through operators that nobody listed, and through every spelling of their arguments."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify.ir import Program, surgery, trace
from sparsify.ir.traits import arguments
from sparsify.passes import Pipeline
from tests.cases import case, digits

aten = torch.ops.aten
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.SELU, nn.Mish, nn.Hardswish, nn.LeakyReLU, nn.PReLU, lambda: nn.PReLU(24), nn.ELU, nn.CELU, nn.Softplus, nn.Hardsigmoid,
    nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, lambda: nn.GELU("tanh"), lambda: nn.Hardtanh(-2, 3), nn.SiLU, nn.RReLU,
)  # fmt: skip


class Flat(nn.Module):
    """A linear layer behind each activation, and batch norms between some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 24)
        self.acts = nn.ModuleList(make() for make in ACTIVATIONS)
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in ACTIVATIONS)
        self.norms = nn.ModuleList(nn.BatchNorm1d(24) if i % 3 == 0 else nn.Identity() for i in range(len(ACTIVATIONS)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        for act, layer, norm in zip(self.acts, self.layers, self.norms, strict=True):
            x = layer(act(norm(x)))
        return x


class Convolutions(nn.Module):
    """1-d, 2-d and 3-d convolutions: same and valid padding, arguments by name, the bare operator, a residual addition, explicit sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 48, 3, padding="same"), nn.Conv2d(48, 48, 3, padding="same", bias=False)
        self.norm, self.slope = nn.BatchNorm2d(48), nn.PReLU(48)
        self.c, self.d = nn.Conv2d(48, 48, 1), nn.Conv1d(48, 48, 3, padding="valid")
        self.e, self.f = nn.Conv3d(48, 48, (1, 1, 3)), nn.Conv3d(48, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.mish(self.a(x))
        x = self.slope(self.norm(F.conv2d(input=x, weight=self.b.weight, padding="same"))) + x
        x = F.avg_pool2d(F.pad(F.selu(aten.convolution.default(x, self.c.weight, self.c.bias, [2, 2], [0, 0], [1, 1], False, [0, 0], 1)),
                               (1, 1, 1, 1)), 2)  # fmt: skip
        x = F.hardswish(self.d(x.view(x.shape[0], 48, -1)))
        x = F.interpolate(self.e(x.reshape(x.shape[0], 48, 1, 1, -1)), scale_factor=(1, 1, 2))
        return self.f(F.leaky_relu(x)).amax((2, 3, 4))


def dead(model: nn.Module, *, every: int) -> nn.Module:
    """Each layer but the first reads every ``every``-th input only."""
    layers = [m for m in model.modules() if hasattr(m, "kernel_size") or isinstance(m, nn.Linear)]
    with torch.no_grad():
        for layer in layers[1:]:
            layer.weight[:, torch.arange(layer.weight.shape[1]) % every != 0] = 0.0  # type: ignore[index, union-attr, operator]
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr, operator]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    return model


def run(text: str, program: Program) -> tuple[Program, list[list[str]]]:
    after, logs = Pipeline.parse(text).run(program)
    x = digits(3)[0]
    torch.testing.assert_close(after.eval()(x), program.eval()(x), rtol=1e-4, atol=1e-5)
    return after, [log.changed for log in logs]


@pytest.mark.parametrize("first", ["fold-batch-norm | ", ""])
def test_outputs_behind_every_activation_go(first):
    program = trace(dead(Flat(), every=3), (digits(2)[0],))
    after, (*_, changed) = run(f"insert-masks | fold-masks | deploy | {first}eliminate-unread-outputs", program)
    assert len(changed) == len(ACTIVATIONS) and all(line.endswith(": 8 of 24 outputs") for line in changed)
    assert not first or "batch_norm" not in after.text()


def test_convolutions_of_every_spelling_lose_outputs_and_batch_norms():
    program = trace(dead(Convolutions(), every=3), (digits(2)[0],))
    after, (*_, folded, changed) = run(
        "insert-masks | fold-masks | deploy | fold-batch-norm | eliminate-unread-outputs", program
    )
    assert folded == ["norm"]
    assert {line.split(".")[0]: line.split(": ")[1] for line in changed} == dict.fromkeys("abcde", "16 of 48 outputs")
    assert after.get_parameter("f.weight").shape[1] == 16 and after.get_parameter("slope.weight").shape == (16,)


def test_orders_are_free_behind_activations_and_convolutions():
    """Outputs whose groups are scattered come together at no cost."""
    torch.manual_seed(0)
    program, group = trace(Convolutions(), (digits(2)[0],)), torch.arange(48) // 16
    with torch.no_grad():
        for name in "bcde":
            weight = program.weight(f"{name}.weight")
            weight[group[torch.randperm(48)][:, None] != group] = 0.0
    after, (*_, ordered) = run("insert-masks | fold-masks | deploy | order-outputs", program)
    assert sorted(", ".join(ordered).split(", ")) == [f"{name}.weight" for name in "bcde"]
    assert "index_select" not in after.text()
    _, (*_, lowered) = run(
        "insert-masks | fold-masks | deploy | order-outputs | lower-grouped-conv{form=grouped}", program
    )
    assert sorted(lowered) == ["b.weight", "d.weight", "e.weight"], "c is the bare operator"


def by_name(program: Program) -> Program:
    """The same program with every argument of every ATen operator given by name, and none left out."""
    for phase in program.phases.values():
        for node in phase.graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload) and "out" not in node.kwargs:
                surgery.set_arguments(node, (), {k: v for k, v in arguments(node).items() if v is not None})
    surgery.finish(program)
    return program


MASKS = "insert-masks{pattern=grouped:16 density=0.5} | fold-masks", "insert-masks{density=0.5} | fold-masks"
DEPLOYED = "deploy | fold-batch-norm | order-outputs | eliminate-unread-outputs | fold-layer-norm | absorb-biases"
DEPLOYED += " | lower-grouped-conv{form=grouped} | lower-grouped-linear{form=grouped}"


@pytest.mark.parametrize(
    ("name", "masks"),
    [("attention", 0), ("wide", 0), ("mlp", 0), ("conv_bn", 1), ("residual", 1), ("depthwise", 1), ("dropouts", 1)],
)
def test_arguments_by_name_are_arguments(name, masks):
    plain, named = case(name).trace(), by_name(case(name).trace())
    assert named.costs() == plain.costs() and named.maskable() == plain.maskable()
    folded = [Pipeline.parse(MASKS[masks])(program) for program in (plain, named)]
    (after, changed), (other, found) = (run(DEPLOYED, program) for program in folded)
    assert found == changed
    assert {n: p.shape for n, p in other.named_parameters()} == {n: p.shape for n, p in after.named_parameters()}
    x = digits(3)[0]
    torch.testing.assert_close(other(x), after(x), rtol=1e-4, atol=1e-5)
