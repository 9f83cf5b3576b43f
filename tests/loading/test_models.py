"""Models and weights from real files; archives that could run code are refused before torch sees them."""

from __future__ import annotations

import io
import json
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparsify.errors import LoadError
from sparsify.ir import trace
from sparsify.loading import digits_cnn, load_model
from sparsify.loading.exported import _is_shape_expression, load_exported
from tests.cases import digits

CNN = "sparsify.loading:digits_cnn"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "cnn.pt2"
    model = digits_cnn()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, (digits(2)[0],), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
        torch.export.save(exported, path)
    return path, model


def test_an_exported_program_is_the_model_with_its_names(archive):
    path, model = archive
    loaded = load_model(str(path))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    program = trace(loaded, (digits(2)[0],))
    x = digits(5)[0]
    torch.testing.assert_close(program.train()(x), model.train()(x))
    assert [site.name for site in program.maskable()] == ["0.weight", "3.weight", "8.weight", "10.weight"]


def changed(source, target, edit):
    """A copy of an archive with each entry passed through ``edit(name, bytes) -> bytes or None``, and what it adds."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = edit(entry.filename.split("/", 1)[1], old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)
    return target


def in_model(change):
    def edit(name, content):
        return change(content.decode()).encode() if name == "models/model.json" else content

    return edit


def in_weights(change):
    def edit(name, content):
        if name != "data/weights/model_weights_config.json":
            return content
        document = json.loads(content)
        change(document["config"]["0.weight"])
        return json.dumps(document).encode()

    return edit


EXPRESSION = '"expr_str": "Symbol('
HOSTILE = {
    "an expression that runs code": (
        in_model(lambda t: t.replace(EXPRESSION, "\"expr_str\": \"__import__('os').system('true') or Symbol(", 1)),
        "the expression",
    ),
    "an expression built from characters": (
        in_model(lambda t: t.replace(EXPRESSION, '"expr_str": "exec(chr(120)+chr(61)) or Symbol(', 1)), "the expression",
    ),
    "an operator outside of aten": (in_model(lambda t: t.replace("torch.ops.aten.relu.default", "torch.hub.load", 1)), "the operator"),
    "a python operator": (in_model(lambda t: t.replace("torch.ops.aten.relu.default", "_operator.methodcaller", 1)), "the operator"),
    "a pickled weight": (in_weights(lambda w: w.update(use_pickle=True)), "the pickled tensor"),
    "a weight from elsewhere": (in_weights(lambda w: w.update(path_name="../../secret")), "the object"),
    "a script object": (in_weights(lambda w: w.update(path_name="custom_obj_0")), "the object"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_could_run_code_is_refused(archive, tmp_path, name):
    edit, message = HOSTILE[name]
    with pytest.raises(LoadError, match=f"holds {message}.*refused"):
        load_exported(changed(archive[0], tmp_path / "m.pt2", edit))


def test_compiled_code_in_an_archive_is_refused(archive, tmp_path):
    target = changed(archive[0], tmp_path / "m.pt2", lambda name, content: content)
    with zipfile.ZipFile(target, "a") as more:
        more.writestr("m/data/aotinductor/model/model.so", b"code")
    with pytest.raises(LoadError, match="holds the part 'data/aotinductor"):
        load_exported(target)


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
    with pytest.raises(LoadError, match=r"is no .pt2 archive|no exported program"):
        load_exported(tmp_path / "m.pt2")


@pytest.mark.parametrize("gone", ["models/model.json", "data/weights/model_weights_config.json", "archive_version"])
def test_an_archive_that_lacks_a_part(archive, tmp_path, gone):
    target = changed(archive[0], tmp_path / "m.pt2", lambda name, content: None if name == gone else content)
    with pytest.raises(LoadError, match="no exported program"):
        load_exported(target)


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("Symbol('s31', positive=True, integer=True)", True),
        ("Mul(Integer(2), Symbol('s0', integer=True))", True),
        ("FloorDiv(Symbol('u0'), Integer(3))", True),
        ("2*s0 + 1", True),
        ("Max(1, s77)", True),
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
    assert _is_shape_expression(text) is fine


@pytest.mark.parametrize("form", ["safetensors", "torch", "nested"])
def test_weights_of_every_form(tmp_path, form):
    torch.manual_seed(5)
    state = digits_cnn().state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "nested" else state, path)
    loaded = load_model(CNN, weights=path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in state.items())


def test_a_pickle_runs_only_where_the_user_says_so(tmp_path):
    torch.save(digits_cnn(), tmp_path / "w.pt")
    with pytest.raises(LoadError, match="--trust-pickle"):
        load_model(CNN, weights=tmp_path / "w.pt")
    assert isinstance(load_model(CNN, weights=tmp_path / "w.pt", trust_pickle=True), nn.Module)
