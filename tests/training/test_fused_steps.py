"""SGD steps by torch's fused implementation where it is right, and as the loop asked otherwise."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sparsify as sp
from sparsify.training.fused_steps import fused
from tests.cases import digits


class Fused(TorchDispatchMode):
    """Counts the tensors that fused steps change."""

    def __init__(self):
        super().__init__()
        self.tensors = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.tensors += len(args[0]) if func is torch.ops.aten._fused_sgd_.default else 0
        return func(*args, **(kwargs or {}))


def stepped(start, gradients, *, inside, **settings):
    """The weight after one step for each gradient, and how many were fused."""
    weight = nn.Parameter(start.clone(memory_format=torch.preserve_format))
    optimizer = torch.optim.SGD([weight], lr=0.013, **settings)
    with Fused() as count:
        for gradient in gradients:
            weight.grad = gradient.clone(memory_format=torch.preserve_format)
            if inside:
                with fused(optimizer):
                    optimizer.step()
            else:
                optimizer.step()
    assert "fused" in optimizer.param_groups[0]
    assert optimizer.param_groups[0]["fused"] is settings.get("fused")
    return weight.detach(), count.tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov", "weight_decay", "maximize"),
    [
        case
        for case in itertools.product((0, 0.9), (0, 0.1), (False, True), (0, 5e-4), (False, True))
        if not case[2] or (case[0] and not case[1])
    ],
)
def test_the_bits_of_the_plain_step(dtype, momentum, dampening, nesterov, weight_decay, maximize):
    """All but the last positions, which fill no register."""
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(6, 16 * 67 + 9, generator=generator, dtype=dtype)
    settings = {
        "momentum": momentum, "dampening": dampening, "nesterov": nesterov, "weight_decay": weight_decay, "maximize": maximize,
    }  # fmt: skip
    (quick, many), (plain, none) = (stepped(start, gradients, inside=inside, **settings) for inside in (True, False))
    assert (many, none) == (5, 0)
    assert torch.equal(quick[:-9], plain[:-9])
    torch.testing.assert_close(quick[-9:], plain[-9:], rtol=8 * torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize(
    "settings", [{"foreach": False}, {"fused": False}, {"foreach": True}, {"lr": torch.tensor(0.01)}]
)
def test_the_choice_of_the_loop_holds(settings):
    weight = nn.Parameter(torch.ones(32))
    optimizer = torch.optim.SGD([weight], **{"lr": 0.1, **settings})
    weight.grad = torch.ones(32)
    with Fused() as count, fused(optimizer):
        optimizer.step()
    assert count.tensors == 0


def channels_last(value):
    return value.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("changed", [(channels_last, lambda value: value), (lambda value: value, channels_last)])
def test_weights_and_gradients_in_another_order_of_memory(changed):
    """torch's fused step would pair the wrong values."""
    start, *gradients = torch.randn(4, 8, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    weight, gradient = changed
    made = [stepped(weight(start), map(gradient, gradients), inside=inside, momentum=0.9) for inside in (True, False)]
    assert made[0][1] == 0
    assert torch.equal(made[0][0], made[1][0])


def test_momentum_in_another_order_of_memory():
    start, *gradients = torch.randn(4, 8, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    found = []
    for inside in (True, False):
        weight = nn.Parameter(start.clone())
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        for gradient in gradients:
            weight.grad = gradient.clone()
            if inside:
                with fused(optimizer):
                    optimizer.step()
            else:
                optimizer.step()
            state = optimizer.state[weight]
            state["momentum_buffer"] = channels_last(state["momentum_buffer"])
        found.append(weight.detach())
    assert torch.equal(*found)


def test_sparse_gradients_and_half_precision_are_stepped_plainly():
    for weight, gradient in (
        (torch.ones(16, 4), torch.eye(16, 4).to_sparse()),
        (torch.ones(32, dtype=torch.bfloat16), torch.ones(32, dtype=torch.bfloat16)),
    ):
        optimizer = torch.optim.SGD([nn.Parameter(weight)], lr=0.1)
        optimizer.param_groups[0]["params"][0].grad = gradient
        with Fused() as count, fused(optimizer):
            optimizer.step()
        assert count.tensors == 0


def test_the_setting_returns_after_an_error():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(32))], lr=0.1)
    with pytest.raises(KeyError), fused(optimizer):
        raise KeyError
    assert optimizer.param_groups[0]["fused"] is None


@pytest.mark.parametrize("method", ["dense", "rigl"])
def test_a_trainer_steps_by_it(method):
    x, y = digits(64)
    found = []
    for choice in (None, False):
        torch.manual_seed(0)
        program = sp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), (x,)).train()
        optimizer = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9, fused=choice)
        settings = {} if method == "dense" else {"density": 0.3, "update_every": 2}
        trainer = sp.attach(getattr(sp.methods, method)(**settings), program, optimizer, total_steps=6)
        with Fused() as count:
            for _ in range(6):
                nn.functional.cross_entropy(program(x), y).backward()
                trainer.step()
                optimizer.zero_grad()
        assert (count.tensors > 0) == (choice is None)
        assert optimizer.state_dict()["param_groups"][0]["fused"] is choice
        found.append(program.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-5, atol=1e-6)
