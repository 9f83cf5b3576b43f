"""What is folded computes the same, and what cannot be folded stays, with the reason: absent and computed parameters are two things."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.exporters import export
from sparsify.ir import trace
from sparsify.passes import Pipeline
from tests.cases import digits


class Block(nn.Module):
    """A layer and its norm, with what is in question between them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, options = kind, {}
        if kind == "circular padding":
            options = {"padding_mode": "circular"}
        if kind == "no bias":
            options = {"bias": False}
        if kind == "groups":
            self.stem = nn.Conv2d(1, 4, 1)
            options = {"groups": 2}
        inputs = 4 if kind == "groups" else 1
        transposed = nn.ConvTranspose2d(inputs, 8, 3, padding=1)
        self.conv = transposed if kind == "transposed" else nn.Conv2d(inputs, 8, 3, padding=1, **options)
        self.bn = nn.BatchNorm2d(
            8,
            affine=kind != "no affine",
            track_running_stats=kind != "no statistics",
        )
        self.fc = nn.Linear(8, 10)
        with torch.no_grad():
            for value in (self.conv.bias, self.bn.running_var, self.bn.weight):
                if value is not None:
                    value.uniform_(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, norm = self.conv.weight, self.conv.bias, self.bn
        x = self.stem(x) if self.kind == "groups" else x
        if self.kind == "computed bias":
            x = norm(F.conv2d(x, weight, bias * 2.0, padding=1))
        elif self.kind == "buffer bias":
            x = norm(F.conv2d(x, weight, norm.running_var, padding=1))
        elif self.kind == "computed weight":
            x = norm(F.conv2d(x, weight / weight.norm(), bias, padding=1))
        elif self.kind == "shared bias":
            x = norm(self.conv(x)) * bias.view(-1, 1, 1)
        elif self.kind == "computed scale":
            x = F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight.exp(), norm.bias, False)
        else:
            x = norm(self.conv(x))
        return self.fc(torch.relu(x).mean((2, 3)))


KINDS = {
    "plain": None, "no bias": None, "no affine": None, "circular padding": None, "groups": None,
    "computed bias": "bias is computed", "buffer bias": "bias is a buffer", "computed weight": "weight is computed",
    "shared bias": "more than once", "computed scale": "scale, shift or statistics are computed",
    "no statistics": "statistics of each batch", "transposed": "not a convolution",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_stay_and_what_is_left_alone_says_why(kind):
    torch.manual_seed(1)
    x, reason = digits(32)[0], KINDS[kind]
    before = trace(Block(kind).eval(), (x[:4],)).eval()
    after, (_, log) = Pipeline.parse("deploy | fold-batch-norm").run(before)
    with torch.no_grad():
        want, have = before(x), after(x)
    assert float(want.std(dim=0).min()) > 5e-4
    torch.testing.assert_close(have, want, rtol=0, atol=1e-5)
    assert bool(log.changed) == (reason is None)
    assert reason is None or reason in log.skipped[0][1]


def test_a_norm_leaves_nothing_in_the_state():
    x = digits(32)[0]
    norm = {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}
    deployed = Pipeline.parse("deploy")(trace(Block("no bias").eval(), (x[:4],)))
    folded = Pipeline.parse("fold-batch-norm")(deployed)
    assert norm <= deployed.state_dict().keys()
    assert {*folded.state_dict()} == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}


@pytest.mark.parametrize("kind", ["computed bias", "no statistics"])
def test_the_file_computes_what_the_model_does(kind, tmp_path):
    torch.manual_seed(1)
    x, model = digits(32)[0], Block(kind).eval()
    result = export(trace(model, (x[:4],)).eval(), tmp_path / "m.onnx", inputs=[x])
    with torch.no_grad():
        want = model(x)
    have = torch.from_numpy(onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": x.numpy()})[0])
    assert result.parity.units == 10 and float((want - have).abs().max()) < 1e-5


def test_a_weight_that_nothing_reads_is_folded_and_left_out(tmp_path):
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.used, self.unused = nn.Linear(64, 16), nn.Linear(16, 10), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x.flatten(1)).relu()
            self.unused(x)
            return self.used(x)

    torch.manual_seed(1)
    x = digits(16)[0]
    program = Pipeline.parse("insert-masks{density=0.5}")(trace(TwoHeads(), (x,)).eval())
    result = export(program, tmp_path / "m.onnx", inputs=[x])
    assert list(program.masks()) == ["body.weight", "used.weight"]
    assert {site.name: site.skip for site in program.maskable()}["unused.weight"], "listed, with its reason"
    assert result.nonzeros == program.costs().active and result.positions == program.costs().maskable
