"""A `.sparsify` file from elsewhere runs no code, opens no file and asks for no memory: it loads, or is refused for what is wrong in it."""

from __future__ import annotations

import copy
import json
import logging
import logging.handlers
import os
import zipfile

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsify as sp
from sparsify.errors import LoadError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """(document, state) of a masked program."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 10))
    program = sp.trace(model, (torch.rand(2, 1, 8, 8),))
    program, _ = sp.Pipeline.parse("insert-masks{density=0.5}").run(program)
    path = tmp_path_factory.mktemp("good") / "good.sparsify"
    program.save(path)
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("program.json")), archive.read("state.safetensors")


def written(path, document, state, compression=zipfile.ZIP_STORED):
    text = document if isinstance(document, (str, bytes)) else json.dumps(document)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("program.json", text)
        archive.writestr("state.safetensors", state)
    return path


def node(document, op, phase="eval"):
    return next(n for n in document["graphs"][phase] if n["op"] == op)


def call(document, name):
    return next(n for n in document["graphs"]["eval"] if name in n["target"])


CODE = "__import__('pathlib').Path('canary').touch()"
IMPORTING = json.dumps(
    [1, {"type": "builtins.dict", "context": '[{"__enum__": true, "fqn": "this:s", "name": "x"}]', "children_spec": []}]
)
FACTORY = json.dumps(
    [1, {"type": "collections.defaultdict", "context": '{"default_factory_module": "os", "default_factory_name": "getcwd", '
         '"dict_context": []}', "children_spec": []}]
)  # fmt: skip
ATTACKS = {
    "an input that is code": (lambda d: node(d, "placeholder").update(target=f"x={CODE}"), "is not a name"),
    "a node that is code": (lambda d: node(d, "call_function").update(name=f"x={CODE};y"), "is not a name"),
    "a node of Python's": (lambda d: node(d, "call_function").update(name="torch"), "needs for itself"),
    "a keyword that is code": (
        lambda d: node(d, "call_function").update(kwargs={"dict": {f"a={CODE},b": 1}}), "is not a name",
    ),
    "a tensor that ends its quotes": (lambda d: d["parameters"].update({f'x")or {CODE}#': True}), "not a qualified name"),
    "a tensor of Python's own": (lambda d: d["buffers"].append("__class__.__init__"), "not a qualified name"),
    "a tap that ends its quotes": (lambda d: d["taps"].append(f'a.b"),{CODE}#'), "not a qualified name"),
    "state that is not there": (lambda d: node(d, "get_attr").update(target="forward.__globals__"), "the file does not hold"),
    "a method": (lambda d: call(d, "relu").update(op="call_method", target="numpy"), "graphs.eval"),
    "a module": (lambda d: call(d, "relu").update(op="call_module", target="fc"), "not a tap or record"),
    "an operator that opens files": (lambda d: call(d, "relu").update(target="op:aten.from_file.default"), "may not call"),
    "an operator that changes memory": (lambda d: call(d, "relu").update(target="op:aten.set_.source_Tensor"), "may not call"),
    "an operator that resizes": (lambda d: call(d, "relu").update(target="op:aten.resize_.default"), "may not call"),
    "an operator without checks": (lambda d: call(d, "relu").update(target="op:aten._unsafe_index.Tensor"), "may not call"),
    "an operator that prints": (lambda d: call(d, "relu").update(target="op:aten._print.default"), "may not call"),
    "an operator that writes to another": (lambda d: call(d, "relu").update(target="op:aten.relu.out"), "may not call"),
    "an operator of another package": (lambda d: call(d, "relu").update(target="op:quantized.linear.default"), "may not call"),
    "an operator by its attributes": (lambda d: call(d, "relu").update(target="op:aten.relu.__class__"), "may not call"),
    "an operator that is none": (lambda d: call(d, "relu").update(target="op:aten.launder.default"), "has no operator"),
    "a function of Python": (lambda d: call(d, "relu").update(target="py:builtins.exec"), "may not call"),
    "a function by a bare name": (lambda d: call(d, "relu").update(target="exec"), "may not call"),
    "inputs of an imported module": (lambda d: d.update(in_spec=IMPORTING), "in_spec: it holds more than"),
    "outputs of an imported factory": (lambda d: d["out_specs"].update(eval=FACTORY), "out_specs.eval: it holds more than"),
    "a device that is a path": (
        lambda d: call(d, "relu").update(args={"tuple": [{"device": "/dev/zero"}]}), "has no form that a program file knows",
    ),
    "a dtype that is a function": (
        lambda d: call(d, "relu").update(args={"tuple": [{"dtype": "load"}]}), "has no form that a program file knows",
    ),
    "a spec whose dtype is a function": (lambda d: d["inputs"][0].__setitem__(2, "load"), "is not a dtype"),
    "a size that is code": (lambda d: d["inputs"][0][1].__setitem__(0, f"N if {CODE} else N"), "not an expression of numbers"),
    "inputs of a terabyte": (lambda d: d["inputs"][0][1].__setitem__(3, 10**12), "more than 536,870,912 values"),
    "an operator that makes a terabyte": (
        lambda d: call(d, "relu").update(target="op:aten.zeros.default", args={"tuple": [{"list": [2**20, 2**20]}]}),
        "makes 1,099,511,627,776 values",
    ),
    "a number of a million digits": (lambda d: json.dumps(d).replace('"format": 1', f'"format": {"9" * 10**6}'), "more than 64 bits"),
    "a power without end": (
        lambda d: call(d, "relu").update(target="py:operator.pow", args={"tuple": [9, 9**18]}), "a number of more than 64 bits",
    ),
    "a list repeated without end": (
        lambda d: call(d, "relu").update(target="py:operator.mul", args={"tuple": [{"list": [0]}, 10**12]}), "not all numbers",
    ),
    "a document nested without end": (lambda d: '{"format": ' * 10**5, "nested more than"),
    "arguments nested deeply": (
        lambda d: json.dumps(d).replace('"args": {', '"args": ' + '{"list": [' * 150 + "1" + "]}" * 150 + ', "more": {', 1),
        "nested more than",
    ),
    "arguments that do not fit": (lambda d: call(d, "relu").update(args={"tuple": []}), "cannot run on what it is given"),
    "a value said to be another": (lambda d: call(d, "relu")["spec"].__setitem__(1, ["N", 17]), "is said to be"),
    "a node twice": (lambda d: d["graphs"]["eval"].insert(0, copy.deepcopy(d["graphs"]["eval"][0])), "two nodes named"),
    "a node that reads a later one": (lambda d: call(d, "relu").update(args={"tuple": [{"node": "output"}]}), "names what is not there"),
    "no output": (lambda d: d["graphs"]["eval"].pop(), "end with its only output"),
    "a name for all outputs": (lambda d: node(d, "output").update(names=[]), "have no names"),
    "one phase": (lambda d: d["graphs"].pop("train"), "graphs and outputs for train and eval"),
    "a deployed program that trains": (lambda d: d.update(stage="deployed"), "graphs and outputs for eval"),
    "a tensor that is not there": (lambda d: d["parameters"].update({"more.weight": True}), "is in one of them only"),
    "an alias of nothing": (lambda d: d["aliases"].update({"1.weight": "x"}), "damaged"),
    "a stage of its own": (lambda d: d.update(stage="trusted"), "stage: Input should be 'traced'"),
    "a number for a list": (lambda d: d.update(taps=7), "taps: Input should be a valid list"),
    "no document": (lambda d: "[]", "program format"),
    "a name with an escape": (lambda d: d.update(name="a\x1b[2J"), "control characters"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_on_a_field_is_refused_and_named(good, tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    change, message = ATTACKS[attack]
    document = copy.deepcopy(good[0])
    text = change(document)
    path = written(tmp_path / "evil.sparsify", text if isinstance(text, str) else document, good[1])
    with pytest.raises(LoadError) as caught:
        sp.Program.load(path)
    assert message in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["evil.sparsify"]


def test_what_is_not_attacked_loads_and_the_parts_are_as_large_as_they_say(good, tmp_path):
    assert sp.Program.load(written(tmp_path / "m.sparsify", *good)).stage.value == "masked"
    with pytest.raises(LoadError, match="compressed"):
        sp.Program.load(written(tmp_path / "bomb.sparsify", *good, compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "m.sparsify", "a") as archive:
        archive.writestr("../escape", b"x")
    with pytest.raises(LoadError, match=r"should hold program.json and state.safetensors"):
        sp.Program.load(tmp_path / "m.sparsify")


def test_the_traceback_of_torch_is_not_shown(good, tmp_path, monkeypatch):
    kept = logging.handlers.BufferingHandler(capacity=1000)
    for name in (None, "torch", "torch._subclasses.fake_tensor"):  # the loggers of torch hand nothing on
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", [*logger.handlers, kept])
    document = copy.deepcopy(good[0])
    document["graphs"]["eval"][-2]["args"] = {"tuple": [{"node": "relu"}, {"list": []}]}
    document["graphs"]["eval"][-2]["target"] = "op:aten.permute.default"
    with pytest.raises(LoadError):
        sp.Program.load(written(tmp_path / "m.sparsify", document, good[1]))
    assert not [record for record in kept.buffer if record.levelname in ("ERROR", "CRITICAL")]


def test_devices_and_pipes_are_no_files(tmp_path):
    (tmp_path / "zero.sparsify").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.sparsify")
    for name in ("zero", "pipe"):
        with pytest.raises(LoadError, match="no program at"):
            sp.Program.load(tmp_path / f"{name}.sparsify")


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    class Quoted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict({"{a}": nn.Linear(64, 10)})

        def forward(self, x):
            return self.layers["{a}"](F.relu(x.flatten(1)))

    program = sp.trace(Quoted(), (torch.rand(2, 1, 8, 8),))
    with pytest.raises(LoadError, match=r"cannot be saved.*not a qualified name"):
        program.save(tmp_path / "m.sparsify")
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_is_told_what_to_give(tmp_path):
    """Commands that take a saved program take no factory."""
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a model")
    with pytest.raises(
        LoadError, match=r"is not a saved program.* Give a file written by .*Program\.save\.$"
    ) as caught:
        sp.Program.load(tmp_path / "model.onnx")
    assert "factory" not in str(caught.value)
