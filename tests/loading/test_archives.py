"""Archives that could run code are refused before torch sees them; what is only torn says so."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
import torch
from torch import nn

from sparsify.errors import LoadError
from sparsify.loading.archives import is_shape_expression
from sparsify.loading.exported import load_exported
from tests.loading.conftest import changed

pytestmark = pytest.mark.filterwarnings("ignore:.*exported in eval mode")


def in_model(change):
    def edit(name, content):
        return change(content.decode()).encode() if name == "models/model.json" else content

    return edit


def in_signature(change):
    def edit(text):
        document = json.loads(text)
        change(document["graph_module"]["module_call_graph"][0]["signature"])
        return json.dumps(document)

    return in_model(edit)


def in_weights(change):
    def edit(name, content):
        if name != "data/weights/model_weights_config.json":
            return content
        document = json.loads(content)
        change(document["config"]["0.weight"])
        return json.dumps(document).encode()

    return edit


RELU, CODE = "torch.ops.aten.relu.default", "__import__('os').abort()"
IMPORTING = json.dumps(
    [1, {"type": "builtins.dict", "context": '[{"__enum__": true, "fqn": "this:s", "name": "x"}]', "children_spec": []}]
)
EXPRESSION = '"expr_str": "Symbol('
HOSTILE = {
    "an expression that runs code": (
        in_model(lambda t: t.replace(EXPRESSION, "\"expr_str\": \"__import__('os').system('true') or Symbol(", 1)),
        "the expr_str",
    ),
    "an expression built from characters": (
        in_model(lambda t: t.replace(EXPRESSION, '"expr_str": "exec(chr(120)+chr(61)) or Symbol(', 1)), "the expr_str",
    ),
    "an operator outside of aten": (in_model(lambda t: t.replace(RELU, "torch.hub.load", 1)), "the target"),
    "a python operator": (in_model(lambda t: t.replace(RELU, "_operator.methodcaller", 1)), "the target"),
    "an operator that opens files": (in_model(lambda t: t.replace(RELU, "torch.ops.aten.from_file.default", 1)), "the target"),
    "an input whose name is code": (in_model(lambda t: t.replace('"input"', f'"input={CODE}"')), "the name"),
    "a value whose name is code": (in_model(lambda t: t.replace('"relu"', f'"relu={CODE};y"')), "the name"),
    "an argument whose name is code": (in_signature(lambda s: s.update(forward_arg_names=[f"x={CODE}"])), "the forward_arg_names"),
    "a module path that ends its quotes": (
        in_model(lambda t: t.replace("L__self___0,0,", f'L__self___0,0\\"){CODE}#,').replace("L__self__0,0,", f'L__self__0,0\\"){CODE}#,')),
        "the nn_module_stack",
    ),
    "an output of an imported module": (in_signature(lambda s: s.update(out_spec=IMPORTING)), "the out_spec"),
    "inputs of an imported module": (in_signature(lambda s: s.update(in_spec=IMPORTING)), "the in_spec"),
    "a weight whose name is code": (
        lambda n, c: c.replace(b'"0.weight"', b'"0.weight\\");open(1)#"') if n.endswith("_config.json") else c, "the name",
    ),
    "an expression without end": (in_model(lambda t: t.replace(EXPRESSION, '"expr_str": "9**9**9**9 + Symbol(', 1)), "the expr_str"),
    "a pickled weight": (in_weights(lambda w: w.update(use_pickle=True)), "the pickled tensor"),
    "a weight from elsewhere": (in_weights(lambda w: w.update(path_name="../../secret")), "the path_name"),
    "a script object": (in_weights(lambda w: w.update(path_name="custom_obj_0")), "the path_name"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_could_run_code_is_refused(archive, tmp_path, name):
    edit, message = HOSTILE[name]
    with pytest.raises(LoadError, match=f"holds {message}.*refused"):
        load_exported(changed(archive[0], tmp_path / "m.pt2", edit))


def test_the_forgeries_do_change_something(archive):
    with zipfile.ZipFile(archive[0]) as entries:
        for name, (edit, _) in HOSTILE.items():
            parts = {entry.filename.split("/", 1)[1]: entries.read(entry) for entry in entries.infolist()}
            assert any(edit(part, content) != content for part, content in parts.items()), name


def test_compiled_code_in_an_archive_is_refused(archive, tmp_path):
    target = changed(archive[0], tmp_path / "m.pt2", lambda name, content: content)
    with zipfile.ZipFile(target, "a") as more:
        more.writestr("m/data/aotinductor/model/model.so", b"code")
    with pytest.raises(LoadError, match="holds the part 'm/data/aotinductor"):
        load_exported(target)


def test_a_part_that_is_there_twice_or_compressed_is_refused(archive, tmp_path):
    for twice in (True, False):
        with zipfile.ZipFile(archive[0]) as old, zipfile.ZipFile(tmp_path / "m.pt2", "w") as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry), None if twice else zipfile.ZIP_DEFLATED)
            if twice:
                with pytest.warns(UserWarning, match="Duplicate name"):
                    new.writestr(old.infolist()[0].filename, b"other")
        with pytest.raises(LoadError, match=r"holds the part .* does not write in this form"):
            load_exported(tmp_path / "m.pt2")


def test_an_encrypted_part_and_a_folder_are_no_archives(archive, tmp_path):
    content = bytearray(archive[0].read_bytes())
    for mark, flags in (
        (b"PK\x03\x04", 6),
        (b"PK\x01\x02", 8),
    ):  # local headers and the directory: bit 0 says encrypted
        place = content.find(mark)
        while place >= 0:
            content[place + flags] |= 1
            place = content.find(mark, place + 4)
    (tmp_path / "m.pt2").write_bytes(content)
    with pytest.raises(LoadError, match=r"is not a .pt2 archive .*encrypted"):
        load_exported(tmp_path / "m.pt2")
    with pytest.raises(LoadError, match=r"cannot read .*directory"):
        load_exported(tmp_path)


def test_pickled_sample_inputs_are_never_read(archive, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was loaded",))

    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    target = changed(archive[0], tmp_path / "m.pt2", lambda n, c: buffer.getvalue() if "sample_inputs" in n else c)
    assert isinstance(load_exported(target), nn.Module)


@pytest.mark.parametrize("cut", [10, 1000, 20_000, -5])
def test_a_torn_archive(archive, tmp_path, cut):
    (tmp_path / "m.pt2").write_bytes(archive[0].read_bytes()[:cut])
    with pytest.raises(LoadError, match=r"is not a .pt2 archive|not an exported program"):
        load_exported(tmp_path / "m.pt2")


@pytest.mark.parametrize("gone", ["models/model.json", "data/weights/model_weights_config.json", "archive_version"])
def test_an_archive_that_lacks_a_part(archive, tmp_path, gone):
    target = changed(archive[0], tmp_path / "m.pt2", lambda name, content: None if name == gone else content)
    with pytest.raises(LoadError, match="not an exported program"):
        load_exported(target)


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("Symbol('s31', positive=True, integer=True)", True),
        ("Mul(Integer(2), Symbol('s0', integer=True))", True),
        ("FloorDiv(Symbol('u0'), Integer(3))", True),
        ("2*s0 + 1", True),
        ("Max(1, s77)", True),
        ("Pow(Symbol('s0'), Integer(2))", True),
        ("s0**2 // 3", True),
        ("9**9**9", False),
        ("Pow(9, Pow(9, 9))", False),
        ("Add(" * 2000 + "1" + ")" * 2000, False),
        ("s0 if s0 else s1", False),
        ("Symbol('s0', integer=open('x'))", False),
        ("s0.__class__", False),
        ("Symbol('s0').__class__", False),
        ("open('x')", False),
        ("Symbol(exec('1'))", False),
        ("[x for x in (1,)]", False),
        ("lambda: 1", False),
        ("Function('f')(1)", False),
        ("'text'", False),
        ("(", False),
    ],
)
def test_shape_expressions(text, fine):
    assert is_shape_expression(text) is fine
