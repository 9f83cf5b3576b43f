"""Learned groups at no cost: the same outputs and graph as contiguous groups; what is not free pays a selection or stays."""

from __future__ import annotations

import functools

import onnx
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.passes import OrderOutputs, Pipeline
from tests.cases import digits
from tests.passes.test_lower_grouped import MODELS


@functools.cache
def traced(model):
    """Traced once; pipelines copy it."""
    torch.manual_seed(1)
    program = sp.trace(model(), (digits()[0],)).eval()
    with torch.no_grad():  # fresh statistics would make folding trivial
        for key, buffer in program.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    return program


def masked(model, pattern, keep="", density=0.3):
    options = f"pattern={pattern} density={density} allocation=uniform"
    return Pipeline.parse(f"insert-masks{{{options}{keep}}}")(traced(model))


def folded(program):
    return Pipeline.parse("fold-masks | deploy | fold-batch-norm")(program).eval()


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_masked_program(name):
    program = masked(MODELS[name], "grouped:32:learned")
    ordered, (log,) = Pipeline((OrderOutputs(),)).run(folded(program))
    x = digits(32)[0]
    assert log.changed
    want = program(x).detach()
    torch.testing.assert_close(ordered(x).detach(), want, rtol=0, atol=1e-5 * float(want.abs().max()))
    again, (second,) = Pipeline((OrderOutputs(),)).run(ordered)
    assert not second.changed and again.text() == ordered.text()


@pytest.mark.parametrize("name", MODELS)
def test_the_file_has_the_operators_of_contiguous_groups(name, tmp_path):
    counts = {}
    for pattern in ("grouped:32", "grouped:32:learned"):
        path = tmp_path / "m.onnx"
        result = sp.export(masked(MODELS[name], pattern), path, inputs=[digits(8)[0]], form="grouped")
        nodes = [node.op_type for node in onnx.load(path).graph.node]
        kinds = set(nodes) - {"Add"}  # biases are absorbed where an output happens to be spare
        counts[pattern] = {kind: nodes.count(kind) for kind in kinds}, sorted(result.forms.values())
    assert counts["grouped:32"] == counts["grouped:32:learned"]
    assert counts["grouped:32"][1].count("grouped") >= 2


def test_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))
    program = sp.trace(model, (digits()[0],)).eval()
    first, second = program.weight("1.weight"), program.weight("3.weight")
    reads = torch.zeros(4, 64)
    reads[0, 20:40] = reads[2, 20:40] = 1.0
    reads[1, 30:50] = reads[3, 30:50] = -1.0
    with torch.no_grad():
        first.copy_(reads * (1 + torch.arange(4))[:, None])
        program.get_parameter("1.bias").copy_(torch.arange(4.0))
        second.copy_(torch.arange(40.0).reshape(10, 4))
    done = Pipeline.parse("insert-masks | fold-masks | deploy | order-outputs")(program)
    assert done.weight("1.weight")[:, 30].tolist() == [1, 3, -2, -4]
    assert done.get_parameter("1.bias").tolist() == [0, 2, 1, 3]
    assert done.weight("3.weight")[0].tolist() == [0, 2, 1, 3]
    assert first[:, 30].tolist() == [1, -2, 3, -4]


def test_an_order_that_is_not_free_is_left_alone():
    class Out(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(64, 32)

        def forward(self, x):
            return self.body(x.flatten(1))

    program = sp.trace(Out(), (digits()[0],)).eval()
    with torch.no_grad():
        program.weight("body.weight")[::2, :32] = 0
        program.weight("body.weight")[1::2, 32:] = 0
    before = folded(Pipeline.parse("insert-masks")(program))
    after, (log,) = Pipeline((OrderOutputs(),)).run(before)
    assert log.skipped == [("body.weight", "the order of its outputs is not free: it is an output")]
    assert torch.equal(after.weight("body.weight"), before.weight("body.weight"))


def mixed(model, count=2):
    """The first layer in ``count`` groups of outputs, mixed, each of which reads its own part of the inputs."""
    weight = next(p for p in model.parameters() if p.ndim > 1)
    group = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0)) % count
    part = torch.arange(weight.shape[1]) * count // weight.shape[1]
    with torch.no_grad():
        weight[group[:, None] != part[None, :]] = 0.0
    return model


MANY = OrderOutputs(sizes=("N=256",))


def ordered(model, x):
    program = folded(Pipeline.parse("insert-masks")(sp.trace(model, (x[:4],)).eval()))
    after, (log,) = Pipeline((MANY,)).run(program)
    torch.testing.assert_close(after(x), program(x), rtol=0, atol=1e-6)
    selections = [n for n in after.phases["eval"].graph.nodes if n.target is torch.ops.aten.index_select.default]
    return after, log, len(selections)


def in_groups(weight, count):
    rows = (weight != 0).reshape(count, -1, weight.shape[1])
    return torch.equal(rows, rows[:, :1].expand_as(rows))


@pytest.mark.parametrize("inside", [True, False])
def test_an_order_that_is_not_free_is_undone_by_a_selection_where_that_is_faster(inside):
    """Rows of two groups, mixed: followed by the reader, or selected back where the order is seen."""
    torch.manual_seed(0)
    model = mixed(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), *((nn.ReLU(), nn.Linear(64, 10)) if inside else ())))
    after, log, selections = ordered(model, digits(6)[0])
    assert in_groups(after.get_parameter("1.weight"), 2) and selections == (0 if inside else 1)
    assert log.changed == ["1.weight" if inside else "1.weight: undone by a selection"]
    lowered = Pipeline.parse("lower-grouped-linear{form=grouped}")(after)
    assert lowered.get_parameter("1.weight").shape == (2, 32, 32)
    again, second, _ = ordered(model, digits(6)[0])
    assert second.changed == log.changed and again.text() == after.text()
    assert not Pipeline((MANY,)).run(after)[1][0].changed


class Sum(nn.Module):
    """Two layers whose outputs are added, and a reader of the sum."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.end = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.end(torch.relu(self.a(x.flatten(1)) + self.b(x.flatten(1))))


def test_layers_that_are_added_share_an_order_or_one_pays_for_its_own():
    model = mixed(Sum())
    after, log, selections = ordered(model, digits(6)[0])  # the second layer is dense and follows
    assert (log.changed, selections) == (["a.weight"], 0) and in_groups(after.get_parameter("a.weight"), 2)
    mask = model.a.weight.detach()[torch.randperm(64, generator=torch.Generator().manual_seed(1))] != 0
    with torch.no_grad():
        model.b.weight.mul_(mask)  # other outputs share its groups
    after, log, selections = ordered(model, digits(6)[0])
    assert log.changed == ["a.weight", "b.weight: undone by a selection"] and selections == 1
    assert in_groups(after.get_parameter("a.weight"), 2) and in_groups(after.get_parameter("b.weight"), 2)


def test_chunks_of_a_reader_stay_whole():
    torch.manual_seed(0)
    model = mixed(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    )
    with torch.no_grad():  # the second layer keeps 2 of 16 chunks of 4 inputs
        model[3].weight[:, 8:] = 0.0
    after, log, selections = ordered(model, digits(6)[0])
    assert log.changed == ["1.weight: undone by a selection"] and selections == 1
    assert after.get_parameter("3.weight")[:, :8].all()
    with torch.no_grad():  # not worth a selection: one group of 16 too few
        model[1].weight[0] = torch.arange(64) < 48
        model[1].weight[1] = torch.arange(64) < 33
    _, log, selections = ordered(model, digits(6)[0])
    assert selections == 0


def test_classes_of_unequal_size_are_ordered_where_that_is_faster():
    """33 + 31 + 33 + 31 outputs that read a quarter of the inputs each: no equal groups, but most groups of 16 are pure."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    owners = torch.tensor([0] * 33 + [1] * 31 + [2] * 33 + [3] * 31)[
        torch.randperm(128, generator=torch.Generator().manual_seed(0))
    ]
    with torch.no_grad():
        model[1].weight[owners[:, None] != torch.arange(64)[None, :] // 16] = 0.0
    after, log, selections = ordered(model, digits(6)[0])
    assert (log.changed, selections) == (["1.weight"], 0)
    read = (after.get_parameter("1.weight") != 0).reshape(8, 16, 64).any(dim=1).sum(dim=1)
    assert read.tolist().count(16) == 6 and read.max() == 32


def test_learned_groups_only_where_the_order_is_free():
    torch.manual_seed(1)
    program = sp.trace(MODELS["block"](), (digits()[0],)).eval()
    masks = "insert-masks{pattern=grouped:32:learned keep-dense=head.weight density=0.5}"
    masked, (log,) = Pipeline.parse(masks).run(program)
    patterns = {site.weight: site.pattern for site in masked.mask_sites()}
    assert patterns["up.weight"] == "grouped:32:learned" and patterns["qkv.weight"] == "grouped:32"
    assert ("qkv.weight", "groups are of consecutive outputs: %reshape reads it") in [
        (where, what) for where, what in log.notes
    ]
    assert "qkv.weight: groups are of consecutive outputs" in str(log)
    chunked, (log,) = Pipeline.parse(masks.replace("32:learned", "32x4:learned")).run(program)
    patterns = {site.weight: site.pattern for site in chunked.mask_sites()}
    assert patterns["up.weight"] == "grouped:32x4"
    assert "down.weight keeps them in chunks" in dict(log.notes)["up.weight"]
