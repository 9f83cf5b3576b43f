"""Files of programs that hold for some batch sizes: the range is in the file, and nothing is run outside it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from sparsify.exporters import export
from sparsify.exporters.size_ranges import ranges_in
from sparsify.ir import trace
from sparsify.ir.size_ranges import SizeRange
from tests.cases import digits


class Limited(nn.Module):
    """Two linear layers, and a rule on the number of samples."""

    def __init__(self, rule) -> None:
        super().__init__()
        self.first, self.second, self.rule = nn.Linear(64, 32), nn.Linear(32, 10), rule

    def forward(self, x):
        y = self.second(self.first(x.flatten(1)).relu())
        return self.rule(x.shape[0], y)


RULES = {  # the rule, the samples at hand, the range, the sizes the proof runs
    "from_two": (lambda n, y: -y if n == 1 else y, 20, SizeRange(2), (2, 20)),
    "to_sixteen": (lambda n, y: -y if n > 16 else y, 20, SizeRange(1, 16), (1, 16)),
    "fours": (lambda n, y: y.view(-1, 4, 10).flip(1).reshape(-1, 10), 22, SizeRange(4, step=4), (4, 20)),
    "not_five": (lambda n, y: -y if n == 5 else y, 5, SizeRange(1, excluded=(5,)), (1, 4)),
    "too_few": (lambda n, y: -y if n < 8 else y, 3, SizeRange(8), (8,)),
    "one_of_fours": (lambda n, y: y.view(-1, 4, 10).flip(1).reshape(-1, 10), 1, SizeRange(4, step=4), (4,)),
}


@pytest.mark.parametrize("name", RULES)
def test_the_file_says_its_range_and_is_proved_inside_it(name, tmp_path):
    rule, samples, expected, sizes = RULES[name]
    torch.manual_seed(0)
    model, (x, _) = Limited(rule).eval(), digits(40)
    with pytest.warns(match="holds for batches of"):
        program = trace(model, (x[:12],))
    result = export(program, tmp_path / "m.onnx", inputs=[x[:samples]], form="dense", batch=1)
    assert result.batch_range == expected
    assert result.parity.batches == sizes
    assert result.parity.units == 10
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert ranges_in(metadata)["batch"] == expected
    assert json.loads(metadata["size_ranges"])["batch"]["low"] == expected.low
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for size in {*sizes, expected.nearest(9)}:
        got = np.asarray(session.run(None, {"x": x[:size].numpy()})[0])
        np.testing.assert_allclose(got, model(x[:size]).detach(), atol=1e-5)


def test_a_file_of_every_batch_says_nothing(tmp_path):
    x, _ = digits(20)
    result = export(trace(Limited(lambda n, y: y), (x,)), tmp_path / "m.onnx", inputs=[x])
    assert result.batch_range == SizeRange()
    assert not [entry for entry in onnx.load(tmp_path / "m.onnx").metadata_props if entry.key == "size_ranges"]
    assert ranges_in({}) == {}


@pytest.mark.parametrize("name", ["to_sixteen", "fours"])
@pytest.mark.filterwarnings("ignore")
def test_int8_runs_inside_the_range(name, tmp_path):
    rule, _, expected, _ = RULES[name]
    torch.manual_seed(0)
    x, y = digits(150)
    program = trace(Limited(rule), (x[:12],)).eval()
    result = export(program, tmp_path / "m.onnx", inputs=[x], precision="int8", calibration=[x], labels=y, held_out=[x])
    assert result.int8 is not None
    assert result.int8.batch == expected.low
    assert sum(expected.pieces(150, 32)) == {"to_sixteen": 150, "fours": 148}[name]
    assert result.int8.decisions == sum(expected.pieces(150, 32))
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert ranges_in(metadata)["batch"] == expected


def test_sizes_of_a_range():
    limited = SizeRange(2, 16, 2, (4,))
    assert [limited.at_most(n) for n in (1, 3, 4, 5, 40)] == [None, 2, 2, 2, 16]
    assert limited.pieces(41, 10) == [10, 10, 10, 10]
    assert limited.pieces(39, 12) == [12, 12, 12, 2]
    assert SizeRange().pieces(70, 32) == [32, 32, 6]
    assert SizeRange(8).pieces(7, 32) == []
