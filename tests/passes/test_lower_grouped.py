"""Grouped layers lowered: the same outputs, few transposes, and blocked convolutions in the optimised graph."""

from __future__ import annotations

import collections
import functools

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import ExportError, PassError
from sparsify.ir.grouped_linear import GROUPED_LINEAR
from tests.cases import digits

aten = torch.ops.aten


class Block(nn.Module):
    """A pre-norm transformer block over the rows of an image."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.qkv, self.out = (
            nn.Linear(8, 64),
            nn.LayerNorm(64),
            nn.Linear(64, 192),
            nn.Linear(64, 64),
        )
        self.norm2, self.up, self.down, self.head = (
            nn.LayerNorm(64),
            nn.Linear(64, 128),
            nn.Linear(128, 64),
            nn.Linear(64, 10),
        )

    def forward(self, x):
        n, t = x.shape[0], 8
        x = self.embed(x.squeeze(1))
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 4, 16).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1) / 4).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, 64))
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class Residual(nn.Module):
    """A stem, a basic block with a strided shortcut, and a bottleneck, each convolution with its batch norm."""

    def __init__(self):
        super().__init__()
        self.stem = self.conv(1, 64, 3)
        self.conv1, self.conv2 = self.conv(64, 128, 3, 2), self.conv(128, 128, 3)
        self.shortcut = self.conv(64, 128, 1, 2)
        self.reduce, self.middle, self.expand = self.conv(128, 64, 1), self.conv(64, 64, 3), self.conv(64, 128, 1)
        self.head = nn.Linear(128, 10)

    @staticmethod
    def conv(inputs, outputs, kernel, stride=1):
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs, momentum=1.0))

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))
        y = self.expand(torch.relu(self.middle(torch.relu(self.reduce(x)))))
        return self.head(torch.relu(x + y).mean((2, 3)))


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10)
    )


MODELS = {"mlp": mlp, "block": Block, "residual": Residual}
LOWER = "lower-grouped-conv{form=grouped} | lower-grouped-linear{form=grouped}"


@functools.cache
def traced(name):
    """Traced once; pipelines copy it."""
    torch.manual_seed(1)
    model = MODELS[name]()
    model(digits(64)[0])  # statistics of batch norms, so that folding them is not trivial
    return sp.trace(model, (digits()[0],)).eval()


def masked(name, pattern="grouped:32", density=0.25):
    text = f"insert-masks{{pattern={pattern} density={density} allocation=uniform}}"
    return sp.Pipeline.parse(text)(traced(name))


@pytest.mark.parametrize("pattern", ["grouped:32", "grouped:64x4", "grouped:256", "grouped:16", "unstructured"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_masked_program(name, pattern):
    program = masked(name, pattern)
    folded = sp.Pipeline.parse("fold-masks | deploy | fold-batch-norm")(program)
    lowered = sp.Pipeline.parse(LOWER)(folded)
    x = digits(20)[0]
    for batch in (1, 20):
        want = program(x[:batch])
        torch.testing.assert_close(
            lowered.eval()(x[:batch]), want, rtol=0, atol=1e-5 * float(want.detach().abs().max())
        )


def test_a_chain_is_turned_at_its_ends_alone():
    program = sp.Pipeline.parse(f"fold-masks | deploy | {LOWER}")(masked("mlp"))
    targets = [node.target for node in program.phases["eval"].graph.nodes]
    assert targets.count(aten.permute.default) == 2
    assert targets.count(GROUPED_LINEAR) == 3 and not {aten.linear.default, aten.matmul.default} & set(targets)
    assert aten.linear.default not in targets  # the dense head reads feature-major values as well


def test_one_group_that_reads_every_input_needs_no_selection():
    program = sp.Pipeline.parse("insert-masks{pattern=grouped:64}")(sp.trace(mlp(), (digits()[0],)).eval())
    lowered, logs = sp.Pipeline.parse(f"fold-masks | deploy | {LOWER}").run(program)
    assert all("read all of its" in reason for log in logs[1:] for _, reason in log.skipped)
    assert aten.index_select.default not in [node.target for node in lowered.phases["eval"].graph.nodes]


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_blocks_along_the_diagonal_need_no_selection(kind):
    layer = nn.Linear(64, 64) if kind == "linear" else nn.Conv2d(64, 64, 1)
    blocks = torch.block_diag(*[torch.ones(16, 16)] * 4).reshape(layer.weight.shape)
    with torch.no_grad():
        layer.weight.mul_(blocks)
    model = nn.Sequential(
        *([nn.Flatten()] if kind == "linear" else [nn.PixelUnshuffle(8)]), layer, nn.Flatten(1), nn.Linear(64, 10)
    )
    program = sp.Pipeline.parse("insert-masks | fold-masks | deploy")(sp.trace(model, (digits()[0],)).eval())
    lowered = sp.Pipeline.parse(LOWER)(program)
    targets = [node.target for node in lowered.phases["eval"].graph.nodes]
    assert not {aten.index_select.default, aten.embedding.default} & set(targets)
    assert lowered.get_parameter("1.weight").shape[:3] == ((4, 16, 16) if kind == "linear" else (64, 16, 1))
    x = digits(6)[0]
    torch.testing.assert_close(lowered.eval()(x), program(x), rtol=0, atol=1e-6)


def test_a_shared_weight_stays_dense_and_says_so():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(64, 64)

        def forward(self, x):
            return self.body(torch.relu(self.body(x.flatten(1))))

    program = sp.Pipeline.parse("insert-masks{pattern=grouped:32 density=0.25}")(sp.trace(Shared(), (digits()[0],)))
    _, logs = sp.Pipeline.parse(f"fold-masks | deploy | {LOWER}").run(program)
    assert ("body.weight", "more than one layer reads it") in logs[-1].skipped


def test_a_lowered_program_survives_the_file(tmp_path):
    program = sp.Pipeline.parse(f"fold-masks | deploy | {LOWER}")(masked("block"))
    program.save(tmp_path / "p.sparsify")
    loaded = sp.Program.load(tmp_path / "p.sparsify")
    assert loaded.text() == program.text()
    assert torch.equal(loaded.eval()(digits()[0]), program.eval()(digits()[0]))


@pytest.mark.parametrize("name", MODELS)
def test_the_file_is_standard_smaller_and_equal(name, tmp_path):
    program = masked(name)
    dense = sp.export(program, tmp_path / "dense.onnx", inputs=[digits(20)[0]], form="dense")
    grouped = sp.export(program, tmp_path / "grouped.onnx", inputs=[digits(20)[0]], form="grouped")
    model = onnx.load(grouped.path)
    assert {node.domain for node in model.graph.node} <= {""}
    assert ("If" in kinds(model.graph.node)) == (name in ("mlp",))  # the others select too little to pay
    assert grouped.parity.largest_error <= 1e-4 and grouped.parity.batches == (1, 20)
    assert grouped.bytes < dense.bytes and grouped.nonzeros == dense.nonzeros == program.costs().active
    assert "grouped" in grouped.forms.values() and dense.forms == {}


def optimised(path):
    """The nodes ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("optimised.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(path.with_name("optimised.onnx")).graph.node


def kinds(nodes):
    return collections.Counter(node.op_type for node in nodes)


def test_the_optimised_graph_of_a_grouped_network_runs_blocked_convolutions(tmp_path):
    program = masked("residual")
    sp.export(program, tmp_path / "dense.onnx", inputs=[digits(4)[0]], form="dense")
    sp.export(program, tmp_path / "m.onnx", inputs=[digits(4)[0]], form="grouped")
    if not any(node.domain == "com.microsoft.nchwc" for node in optimised(tmp_path / "dense.onnx")):
        pytest.skip("this processor has no blocked layout in ONNX Runtime")
    nodes = optimised(tmp_path / "m.onnx")
    convolutions = [node for node in nodes if node.op_type in ("Conv", "FusedConv")]
    assert len(convolutions) == 7 and {node.domain for node in convolutions} == {"com.microsoft.nchwc"}
    groups = [a.i for node in convolutions for a in node.attribute if a.name == "group"]
    assert sum(count > 1 for count in groups) >= 3  # the others have one group, or read every input that is left
    found = kinds(nodes)
    assert not found.keys() & {"BatchNormalization", "Add", "Relu", "Transpose"}  # all of them inside the convolutions
    assert found["Gather"] <= 6 and found["ReorderInput"] <= found["Gather"] + 1


def test_a_group_below_sixteen_leaves_the_blocked_layout(tmp_path):
    """What the multiples of 16 are for: the check above would see it."""
    weight = torch.randn(64, 12, 3, 3)
    grouped = nn.Conv2d(48, 64, 3, groups=4)
    model = nn.Sequential(nn.Conv2d(1, 48, 3), nn.ReLU(), grouped)
    with torch.no_grad():
        grouped.weight.copy_(weight)
    sp.export(sp.trace(model, (digits(4)[0],)).eval(), tmp_path / "m.onnx", inputs=[digits(4)[0]])
    nodes = [node for node in optimised(tmp_path / "m.onnx") if node.op_type in ("Conv", "FusedConv")]
    if not any(node.domain == "com.microsoft.nchwc" for node in nodes):
        pytest.skip("this processor has no blocked layout in ONNX Runtime")
    assert [node.domain == "com.microsoft.nchwc" for node in nodes] == [True, False]


def test_the_optimised_graph_of_a_chain_has_little_beside_its_products(tmp_path):
    sp.export(masked("mlp"), tmp_path / "m.onnx", inputs=[digits(4)[0]], form="grouped", selection="gather")
    found = kinds(optimised(tmp_path / "m.onnx"))
    products = sum(found[kind] for kind in ("Conv", "FusedConv", "MatMul", "Gemm"))
    assert found["Gather"] == 2 and products == 3 and found["Transpose"] <= 2


def test_a_strided_selection_takes_the_steps_first():
    program = sp.Pipeline.parse(f"fold-masks | deploy | fold-batch-norm | {LOWER}")(masked("residual"))
    nodes = program.phases["eval"].graph.nodes
    (pool,) = [node for node in nodes if node.target is aten.max_pool2d.default]
    (selection,) = pool.users
    (shortcut,) = selection.users
    assert pool.args[1:] == ([1, 1], [2, 2]) and shortcut.args[3] == [1, 1]
    assert pool.meta["spec"].shape[2:] == (4, 4)


def test_misuse_says_what_to_do(tmp_path):
    program = sp.Pipeline.parse("fold-masks | deploy")(masked("mlp"))
    for text, message in (("form=fast", "no choice 'fast'"), ("keep-dense=nothing", "matches no weight")):
        with pytest.raises(PassError, match=message):
            sp.Pipeline.parse(f"lower-grouped-linear{{{text}}}")(program)
    with pytest.raises(ExportError, match="form should be one of auto"):
        sp.export(program, tmp_path / "m.onnx", inputs=[digits(4)[0]], form="fast")


def test_a_file_for_several_samples_has_no_branch_and_still_takes_one(tmp_path):
    program, x = masked("mlp"), digits(20)[0]
    one = sp.export(program, tmp_path / "one.onnx", inputs=[x], form="grouped")
    several = sp.export(program, tmp_path / "several.onnx", inputs=[x], form="grouped", batch=20)
    assert "If" in kinds(onnx.load(one.path).graph.node)
    found = kinds(onnx.load(several.path).graph.node)
    assert "If" not in found and "GatherElements" not in found and found["Gather"] == 2
    assert several.parity.batches == (1, 20) and several.parity.largest_error <= 1e-4


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", MODELS)
def test_measuring_says_the_times_and_keeps_parity(name, batch, tmp_path):
    result = sp.export(masked(name), tmp_path / "m.onnx", inputs=[digits(4)[0]], form="auto:measure", batch=batch)
    measured = {weight: text for weight, text in result.forms.items() if "measured" in text}
    assert len(measured) >= 2
    assert all(text.startswith(("grouped: ", "dense: ")) and "µs dense" in text for text in measured.values())
