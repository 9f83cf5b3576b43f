"""A call gives arguments by position or by name, whatever the trace did."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from sparsify.errors import LoadError, TraceError
from sparsify.ir import Program, trace
from sparsify.training.optimizers import Optimizers
from sparsify.training.undo import undone_on_error
from tests.cases import digits


class Net(nn.Module):
    """Two inputs, one optional, one of them nested, and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x, parts, scale=None, *rest, negative=False, **more):
        y = self.fc(x.flatten(1)) + parts["a"] - 2 * parts["b"][0]
        y = y if scale is None else y * scale
        for value in (*rest, *more.values()):
            y = y + value
        return -y if negative else y


def values(count=4):
    x, _ = digits(count)
    torch.manual_seed(0)
    a, b, scale = torch.rand(3, count, 10)
    return x, {"a": a, "b": [b]}, scale


TRACED = {
    "by position": lambda x, parts, scale: ((x, parts, scale), None),
    "by name": lambda x, parts, scale: ({"scale": scale, "parts": parts, "x": x}, None),
    "mixed": lambda x, parts, scale: ((x,), {"scale": scale, "parts": parts}),
}
CALLED = {
    "by position": lambda p, x, parts, scale: p(x, parts, scale),
    "by name": lambda p, x, parts, scale: p(scale=scale, x=x, parts=parts),
    "mixed": lambda p, x, parts, scale: p(x, scale=scale, parts=parts),
    "other order inside": lambda p, x, parts, scale: p(x, {"b": parts["b"], "a": parts["a"]}, scale),
    "with a default": lambda p, x, parts, scale: p(x, parts, scale, negative=False),
    "tuple": lambda p, x, parts, scale: p.call((x, parts, scale)),
    "mapping": lambda p, x, parts, scale: p.call({"parts": parts, "x": x, "scale": scale}),
}


@pytest.mark.parametrize("traced", TRACED)
def test_a_call_is_bound_by_names(traced, tmp_path):
    model = Net().eval()
    program = trace(model, *TRACED[traced](*values(6)))
    program.save(tmp_path / "a.sparsify")
    x, parts, scale = values()
    want = model(x, parts, scale)
    for other in (program, program.clone(), Program.load(tmp_path / "a.sparsify"), program.module()):
        for name, call in CALLED.items():
            if isinstance(other, Program) or not name.startswith(("tuple", "mapping")):
                assert torch.equal(want, call(other, x, parts, scale)), name
    assert [spec.name for spec in program.input_specs] == ["x", "parts_a", "parts_b_0", "scale"]
    assert all(map(torch.equal, program.input_tensors((x, parts, scale)), (x, parts["a"], parts["b"][0], scale)))


def test_inputs_have_the_names_of_forward_in_any_order():
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, input, type, mask):
            return self.fc(input.flatten(1)) + 3 * type - mask

    x, parts, scale = values()
    batch = {"mask": scale, "type": parts["a"], "input": x}
    program = trace(Swapped().eval(), batch)
    assert [spec.name for spec in program.input_specs] == ["input", "type", "mask"]
    assert torch.equal(program(**batch), program(x, parts["a"], scale))


def test_rest_arguments_are_bound():
    model, (x, parts, scale) = Net().eval(), values()
    program = trace(model, (x, parts, scale, scale + 1))
    assert [spec.name for spec in program.input_specs][-1] == "rest_0"
    assert torch.equal(program(x, parts, scale, scale + 1), model(x, parts, scale, scale + 1))
    with pytest.raises(TraceError, match=r"x, parts, scale, rest\[0\]; found 3 by position: missing 'rest\[0\]'"):
        program(x, parts, scale)


def test_arguments_of_any_name_are_bound(tmp_path):
    model, (x, parts, scale) = Net().eval(), values()
    more = {"left": scale + 1, "right": scale + 2}
    program = trace(model, {"x": x, "parts": parts, **more})
    assert [spec.name for spec in program.input_specs] == ["x", "parts_a", "parts_b_0", "left", "right"]
    program.save(tmp_path / "a.sparsify")
    fewer = {name: value[:3] for name, value in more.items()}
    parts, x = {"a": parts["a"][:3], "b": [parts["b"][0][:3]]}, x[:3]
    for other in (program, Program.load(tmp_path / "a.sparsify")):
        assert torch.equal(other(x, parts, **fewer), model(x, parts, **fewer))


def test_a_tensor_is_the_first_argument():
    model, (x, _) = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(), digits(4)
    program = trace(model, x)
    assert torch.equal(program.call(x), model(x))
    assert torch.equal(program(input=x), model(x))


WRONG = {
    "missing": (lambda p, x, parts, scale: p(x=x), r"arguments x, parts; found x: missing a required argument: 'parts'"),
    "unknown": (lambda p, x, parts, scale: p(x, parts, bias=scale), "the trace left out 'bias'"),
    "left out": (lambda p, x, parts, scale: p(x, parts=parts, scale=scale), "the trace left out 'scale'"),
    "twice": (lambda p, x, parts, scale: p(x, parts, x=x), "multiple values for argument 'x'"),
    "another flag": (lambda p, x, parts, scale: p(x, parts, negative=True), "the trace left out 'negative'"),
    "key": (lambda p, x, parts, scale: p(x, {"a": scale}), "argument 'parts' of program 'net' was traced with the structure"),
    "no inputs": (lambda p, x, parts, scale: p.call(3), "inputs should be a tensor, a tuple"),
    "keys": (lambda p, x, parts, scale: p.call({1: x}), "found 1"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_names_are_told(wrong):
    x, parts, scale = values()
    program = trace(Net().eval(), {"x": x, "parts": parts})
    call, message = WRONG[wrong]
    with pytest.raises(TraceError, match=message):
        call(program, x, parts, scale)


def test_wrong_names_in_a_trace_are_told():
    x, parts, _ = values()
    with pytest.raises(
        TraceError, match=r"do not fit Net.forward: missing a required argument: 'parts'.* found x, part\."
    ):
        trace(Net(), {"x": x, "part": parts})


def test_an_attach_that_fails_keeps_the_names():
    x, parts, _ = values()
    program = trace(Net(), {"x": x, "parts": parts})
    before = program.signature
    optimizer = torch.optim.SGD(program.parameters(), 0.1)
    with pytest.raises(ZeroDivisionError), undone_on_error(program, Optimizers(optimizer)):
        raise ZeroDivisionError
    assert program.signature == before
    assert program(parts=parts, x=x).shape == (4, 10)


def rewritten(path, change):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(parts["program.json"])
    change(document)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (parts | {"program.json": json.dumps(document).encode()}).items():
            archive.writestr(name, data)


def test_a_file_without_the_parameters_of_forward_is_read(tmp_path):
    x, _ = digits(4)
    program = trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(), (x,))
    program.save(tmp_path / "a.sparsify")
    rewritten(tmp_path / "a.sparsify", lambda document: document.pop("forward"))
    loaded = Program.load(tmp_path / "a.sparsify")
    assert torch.equal(loaded(input=x), program(x))


FORGED = {
    "no name": [["x y", "plain", None]],
    "a keyword": [["class", "plain", None]],
    "twice": [["x", "plain", None], ["x", "keyword", None]],
    "order": [["x", "options", None], ["y", "plain", None]],
    "kind": [["x", "code", None]],
    "default": [["x", "plain", [{"node": "x"}]]],
    "too many defaults": [["x", "plain", [1, 2]]],
    "too long": [[f"x{i}", "plain", None] for i in range(1001)],
}


@pytest.mark.parametrize("forged", FORGED)
def test_forged_parameters_are_refused(forged, tmp_path):
    x, _ = digits(4)
    trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (x,)).save(tmp_path / "a.sparsify")
    rewritten(tmp_path / "a.sparsify", lambda document: document.update(forward=FORGED[forged]))
    with pytest.raises(LoadError, match="forward"):
        Program.load(tmp_path / "a.sparsify")


@pytest.mark.parametrize("in_spec", ['[1, {"type": null, "context": null, "children_spec": []}]', "swapped"])
def test_a_forged_structure_of_arguments_is_refused(in_spec, tmp_path):
    x, _ = digits(4)
    program = trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (x,))
    program.save(tmp_path / "a.sparsify")
    forged = pytree.treespec_dumps(pytree.tree_structure(({"x": 0}, ()))) if in_spec == "swapped" else in_spec
    rewritten(tmp_path / "a.sparsify", lambda document: document.update(in_spec=forged))
    with pytest.raises(LoadError, match="in_spec"):
        Program.load(tmp_path / "a.sparsify")
