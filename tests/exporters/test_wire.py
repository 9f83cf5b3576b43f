"""Exports copy weights as little as they can, and never write into those of the program."""

import subprocess
import sys
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.exporters.graphs import without_shapes
from sparsify.exporters.wire import pieces
from sparsify.ir import surgery

_MEASURED = """
import ctypes, gc, re, sys, warnings
from pathlib import Path
import torch
from torch import nn
import sparsify as sp
warnings.simplefilter("ignore")
torch.set_num_threads(1)
def export(width):
    layers = [part for _ in range(4) for part in (nn.Linear(width, width), nn.ReLU())]
    x = torch.randn(4, width)
    program = sp.trace(nn.Sequential(*layers, nn.Linear(width, 3)).eval(), (x,)).eval()
    status = lambda key: 1024 * int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    held = status("VmRSS")
    sp.export(program, Path(sys.argv[1]) / "model.onnx", inputs=[x], form="dense")
    return (status("VmHWM") - held) / sum(4 * p.numel() for p in program.parameters())
export(8)  # what is loaded once is no copy of weights
print(export(1700))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
def test_an_export_holds_few_copies_of_the_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _MEASURED, str(tmp_path)]
    found = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0 < found < 3, "times the weights' bytes, over what the process held"


class _Several(nn.Module):
    """Batch norm behind a biased and an unbiased layer, a layer norm, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8)
        self.down, self.norm2 = nn.Linear(8 * 6, 32, bias=False), nn.BatchNorm1d(32)
        self.norm, self.up, self.again = nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.again.weight = self.up.weight
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x[:, None]))).flatten(1)
        x = torch.relu(self.norm2(self.down(x)))
        return self.head(torch.relu(self.again(torch.relu(self.up(self.norm(x))))))


@pytest.mark.parametrize("form", ["dense", "grouped"])
def test_no_pass_of_an_export_writes_into_the_weights_of_the_program(tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 8)
    program = sp.Pipeline.parse("insert-masks{density=0.5}")(sp.trace(_Several().train(), (x,)).eval())
    for name, mask in program.masks().items():
        flat = torch.arange(mask[0].numel()) % 2
        mask.copy_(torch.stack([flat == row % 2 for row in range(len(mask))]).reshape(mask.shape))
        assert mask.any(), name
    before = {
        name: (value, value._version, value.detach().clone())
        for name, value in program.state_dict(keep_vars=True).items()
    }
    result = sp.export(program, tmp_path / "model.onnx", inputs=[x], form=form)
    assert (form == "dense") == (not any(text == "grouped" for text in result.forms.values()))
    after = program.state_dict(keep_vars=True)
    assert list(after) == list(before)
    for name, (value, version, bits) in before.items():
        assert after[name] is value and torch.equal(value, bits), name
        if isinstance(value, nn.Parameter):  # buffers are put back after a run, which counts as writing
            assert value._version == version, name
    data = (tmp_path / "model.onnx").read_bytes()
    proto = onnx.load_from_string(data)
    model = ir.from_proto(proto)
    without_shapes(model.graph)
    assert b"".join(pieces(model)) == data == proto.SerializeToString(deterministic=True)
    assert result.bytes == len(data) and [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_rewritten_values_have_memory_of_their_own_under_every_name() -> None:
    x = torch.randn(6, 8)
    program = sp.trace(_Several().train(), (x,)).eval()
    old = program.get_parameter("up.weight")
    surgery.rewrite(program, "again.weight", torch.ones(32, 32))
    assert program.get_parameter("up.weight") is program.get_parameter("again.weight")
    assert not torch.equal(old, torch.ones(32, 32)) and program.get_parameter("up.weight").eq(1).all()
    surgery.rewrite(program, "bn.running_mean", torch.full((8,), 2.0))
    assert "bn.running_mean" in program.state_dict() and program.tensor("bn.running_mean").eq(2).all()
