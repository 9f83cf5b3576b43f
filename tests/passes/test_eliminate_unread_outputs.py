"""What nothing reads is gone, groups stay equal, outputs are the same."""

from __future__ import annotations

import torch
from torch import nn

import sparsify as sp
from tests.cases import digits


def zero_inputs(weight, inputs):
    with torch.no_grad():
        weight[:, inputs] = 0.0


def eliminated(model, x):
    program = sp.Pipeline.parse("insert-masks | fold-masks | deploy")(sp.trace(model, (x[:4],)).eval())
    after, logs = sp.Pipeline.parse("eliminate-unread-outputs").run(program)
    torch.testing.assert_close(after(x), program(x), rtol=0, atol=1e-6)
    return after, logs[0]


def shapes(program):
    return {name: tuple(p.shape) for name, p in program.named_parameters() if name.endswith("weight")}


def test_outputs_that_nothing_reads_are_dropped_by_hand():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 3.0, 0.0]]))
    kept = model[0].weight[[0, 2]].clone()
    after, log = eliminated(model, torch.randn(6, 3))
    assert shapes(after) == {"0.weight": (2, 3), "2.weight": (2, 2)}
    assert torch.equal(after.get_parameter("0.weight"), kept)
    assert after.get_parameter("2.weight").tolist() == [[1.0, 2.0], [0.0, 3.0]]
    assert log.changed == ["0.weight: 2 of 4 outputs"]


def test_a_chain_gets_shorter_from_its_end():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(8))
    zero_inputs(model[4].weight, [0, 1, 2, 5])
    after, _ = eliminated(model, torch.randn(6, 3))
    assert shapes(after) == {"0.weight": (4, 3), "2.weight": (4, 4), "4.weight": (2, 4)}


def test_convolutions_keep_multiples_of_sixteen_through_depthwise_ones_and_pooling():
    layers = (nn.Conv2d(1, 64, 3, padding=1), nn.ReLU6(), nn.Conv2d(64, 64, 3, groups=64), nn.ReLU(), nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.Conv2d(64, 8, 1), nn.Flatten(1), nn.Linear(72, 10))
    zero_inputs(model[5].weight, range(20, 64))  # 20 are read: 32 are kept
    after, log = eliminated(model, digits(6)[0])
    assert shapes(after) == {
        "0.weight": (32, 1, 3, 3),
        "2.weight": (32, 1, 3, 3),
        "5.weight": (8, 32, 1, 1),
        "7.weight": (10, 72),
    }
    assert any("0.weight: 32 of 64 outputs" in line for line in log.changed)
    assert ("5.weight", "all its groups have outputs that are read") in log.skipped


def test_what_is_added_to_another_value_stays():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x):
            x = x.flatten(1)
            return self.b(torch.relu(self.a(x)) + x)

    model = Block()
    zero_inputs(model.b.weight, range(32))
    after, log = eliminated(model, digits(6)[0])
    assert shapes(after)["a.weight"] == (64, 64) and ("a.weight", "%add reads it") in log.skipped


def test_groups_stay_equal_and_chunks_whole():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    program = sp.trace(model, (digits()[0],)).eval()
    pattern = "insert-masks{pattern=grouped:64x4 density=0.25 keep-dense=5.weight} | fold-masks | deploy"
    program = sp.Pipeline.parse(pattern)(program)
    after = sp.Pipeline.parse("eliminate-unread-outputs")(program)
    first, second = after.get_parameter("1.weight"), after.get_parameter("3.weight")
    assert first.shape[0] % 8 == 0 and first.shape[0] < 128 and second.shape == (128, first.shape[0])
    runs = (second.detach() != 0).reshape(128, -1, 4)
    assert torch.equal(runs.any(dim=2), runs.all(dim=2))
    torch.testing.assert_close(after(digits(6)[0]), program(digits(6)[0]), rtol=0, atol=1e-6)
