"""Learned groups at no cost: the same outputs and the same graph as contiguous groups; what is not free is left alone."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.passes import OrderOutputs, Pipeline
from tests.cases import digits
from tests.passes.test_lower_grouped import MODELS


def masked(model, pattern, keep="", density=0.3):
    torch.manual_seed(1)
    program = sp.trace(model(), (digits()[0],)).eval()
    with torch.no_grad():  # fresh statistics would make folding trivial
        for key, buffer in program.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    options = f"pattern={pattern} density={density} allocation=uniform"
    return Pipeline.parse(f"insert-masks{{{options}{keep}}}")(program)


def folded(program):
    return Pipeline.parse("fold-batch-norm | fold-masks")(program).eval()


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_masked_program(name):
    program = masked(MODELS[name], "grouped:32:learned")
    ordered, (log,) = Pipeline((OrderOutputs(),)).run(folded(program))
    x = digits(32)[0]
    assert log.changed
    want = program(x).detach()
    torch.testing.assert_close(ordered(x).detach(), want, rtol=0, atol=1e-5 * float(want.abs().max()))
    torch.testing.assert_close(ordered.train()(x), ordered.eval()(x), rtol=0, atol=0)
    again, (second,) = Pipeline((OrderOutputs(),)).run(ordered)
    assert not second.changed and again.text() == ordered.text()


@pytest.mark.parametrize("name", MODELS)
def test_the_file_has_the_operators_of_contiguous_groups(name, tmp_path):
    counts = {}
    for pattern in ("grouped:32", "grouped:32:learned"):
        path = tmp_path / "m.onnx"
        result = sp.export(masked(MODELS[name], pattern), path, inputs=[digits(8)[0]], form="grouped")
        nodes = [node.op_type for node in onnx.load(path).graph.node]
        counts[pattern] = {kind: nodes.count(kind) for kind in set(nodes)}, sorted(result.forms.values())
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
    done = Pipeline.parse("insert-masks | fold-masks | order-outputs")(program)
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
