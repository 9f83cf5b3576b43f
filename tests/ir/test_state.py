"""A user's modules and weights may be called like anything: state is looked up in tables, never as an attribute."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.ir import Program, trace
from tests.cases import digits

NAMES = (
    "module", "mask", "masks", "logits", "text", "stage", "graph", "code", "weight", "phases", "clone", "name", "outputs", "tensor",
    "tensors", "save", "costs", "taps", "meta", "recompile", "constants", "in_spec", "batch_ranges", "adopt", "a b", "7",
)  # fmt: skip


def named(names: tuple[str, ...], middle: str = "") -> nn.Module:
    """A stack of small layers with these names, at the root or within a module called ``middle``."""
    net, place = nn.Sequential(nn.Flatten()), nn.Sequential()
    if middle:
        net.add_module(middle, place)
    else:
        place = net
    place.add_module(names[0], nn.Linear(64, 12))
    for name in names[1:]:
        place.add_module(name, nn.Linear(12, 12))
    net.add_module("last", nn.Linear(12, 10))
    return net


@pytest.mark.parametrize("middle", ["", "graph"], ids=["root", "nested"])
def test_any_name_traces_trains_saves_and_exports(middle, tmp_path):
    torch.manual_seed(0)
    net, (x, labels) = named(NAMES if not middle else ("in", "class", "lambda", *NAMES[:6]), middle), digits(16)
    program = trace(net, (x,)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    trainer = sp.attach(sp.methods.set(density=0.4, update_every=1), program, optimizer, total_steps=4)
    before = {name: mask.clone() for name, mask in program.masks().items()}
    for _ in range(2):
        trainer.loss(program(x), labels).backward()
        trainer.step()
    assert len(before) == len(dict(net.named_parameters())) // 2
    assert any(not torch.equal(before[name], mask) for name, mask in program.masks().items())
    program.eval().save(tmp_path / "a.sparsify")
    loaded = Program.load(tmp_path / "a.sparsify")
    assert torch.equal(loaded(x), program(x))
    assert torch.equal(program.module().eval()(x), program(x))
    assert loaded.text() == program.text()
    result = sp.export(loaded, tmp_path / "a.onnx", inputs=[x])
    assert result.nonzeros == sum(int(program.weight(name).count_nonzero()) for name in program.masks())


class Called(nn.Module):
    """Parameters and a buffer with names of attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.randn(10, 64) / 8)
        self.graph = nn.Parameter(torch.zeros(10))
        self.register_buffer("phases", torch.full((10,), 0.5))

    def forward(self, x):
        return nn.functional.linear(x.flatten(1), self.mask, self.graph) + self.phases


def test_parameters_and_buffers_may_have_any_name(tmp_path):
    net, (x, _) = Called().eval(), digits(8)
    program = trace(net, (x,))
    masked = sp.Pipeline.parse("insert-masks{density=0.5}")(program)
    assert [site.weight for site in masked.mask_sites()] == ["mask"]
    masked.save(tmp_path / "a.sparsify")
    loaded = Program.load(tmp_path / "a.sparsify")
    assert torch.equal(loaded(x), masked(x))
    sp.export(loaded, tmp_path / "a.onnx", inputs=[x])


def test_a_wrapped_model_keeps_its_names():
    net, (x, _) = nn.DataParallel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), digits(4)
    program = trace(net, (x,))
    assert [site.name for site in program.maskable()] == ["module.1.weight"]
    assert torch.equal(program(x), net(x))


def test_a_mask_or_tensor_that_is_not_there_is_answered_with_those_that_are():
    net, (x, _) = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), digits(4)
    dense = trace(net, (x,))
    masked = sp.Pipeline.parse("insert-masks{density=0.5}")(dense)
    assert masked.mask("1.weight").dtype is torch.bool
    with pytest.raises(AttributeError, match=r"no mask of 'nope'\. Weights with a mask: 1\.weight, 3\.weight\."):
        masked.mask("nope")
    with pytest.raises(AttributeError, match=r"no mask of '1\.weight'\. No weight has one: apply insert-masks"):
        dense.mask("1.weight")
    with pytest.raises(AttributeError, match=r"no parameter or buffer '1\.wieght'\. Nearest: 1\.weight"):
        masked.weight("1.wieght")
