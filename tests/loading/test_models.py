"""Weights of every form, what does not fit said with names and shapes, and pickles only where the user says so."""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from sparsify.errors import LoadError, LoadWarning
from sparsify.loading import digits_cnn, load_model

CNN = "sparsify.loading:digits_cnn"


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


@pytest.mark.parametrize("key", ["model_state_dict", "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.module."])
def test_checkpoints_of_other_trainers(tmp_path, key, prefix):
    torch.manual_seed(5)
    state = digits_cnn().state_dict()
    content = {key: {prefix + name: value for name, value in state.items()}, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "w.pt")
    said = pytest.warns(LoadWarning, match=f"without the prefix '{prefix}'") if prefix else contextlib.nullcontext()
    with said:
        loaded = load_model(CNN, weights=tmp_path / "w.pt")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state": {"model": s, "epoch": 3}},
        lambda s: {"state": {"model": s}, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}},
        lambda s: {"model": {"backbone": s}, "ema_decay": 0.9},
        lambda s: {"run": {"last": {"generator": s}}},
    ],
)
def test_a_checkpoint_may_wrap_a_state_dict_several_times(tmp_path, wrap):
    torch.manual_seed(5)
    state = digits_cnn().state_dict()
    torch.save(wrap(state), tmp_path / "w.pt")
    loaded = load_model(CNN, weights=tmp_path / "w.pt")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in state.items())


def test_a_pickle_runs_only_where_the_user_says_so(tmp_path):
    torch.save(digits_cnn(), tmp_path / "w.pt")
    with pytest.raises(LoadError, match="--trust-pickle"):
        load_model(CNN, weights=tmp_path / "w.pt")
    assert isinstance(load_model(CNN, weights=tmp_path / "w.pt", trust_pickle=True), nn.Module)


def test_a_pickled_module_is_a_model_only_where_the_user_says_so(tmp_path):
    model = digits_cnn()
    torch.save(model, tmp_path / "m.pt")
    with pytest.raises(LoadError, match="--trust-pickle"):
        load_model(str(tmp_path / "m.pt"))
    loaded = load_model(str(tmp_path / "m.pt"), trust_pickle=True).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    torch.save(model.state_dict(), tmp_path / "m.pt")
    with pytest.raises(LoadError, match=r"OrderedDict, not a module.*--weights"):
        load_model(str(tmp_path / "m.pt"), trust_pickle=True)


def test_what_a_trusted_pickle_raises_is_a_load_error(tmp_path):
    torch.save(Fragile(), tmp_path / "m.pt")
    with pytest.raises(LoadError, match="ZeroDivisionError: broken"):
        load_model(str(tmp_path / "m.pt"), trust_pickle=True)


class Fragile:
    """Unpickling it fails in a way of its own."""

    def __setstate__(self, state):
        raise ZeroDivisionError("broken")

    def __getstate__(self):
        return {"a": 1}


def renamed(old, new):
    return lambda state: {(new if name == old else name): value for name, value in state.items()}


MISFITS = {
    "a prefix, and one name short": (
        lambda s: {f"module.{n}": v for n, v in s.items() if n != "0.weight"}, "missing 0.weight; nothing unexpected",
    ),
    "two state dicts": (lambda s: {"model": s, "state_dict": s}, "holds several state dicts: state_dict, model"),
    "two of them further in": (lambda s: {"state": {"a": s, "b": s}}, "holds several state dicts: a, b"),
    "no head": (lambda s: {n: v for n, v in s.items() if not n.startswith("10.")}, "lacks the layer 10. To train it from scratch"),
    "a near name": (renamed("3.weight", "3.weigth"), "missing 3.weight; unexpected 3.weigth. Nearest: 3.weight and 3.weigth"),
    "one is missing": (lambda s: {n: v for n, v in s.items() if n != "8.bias"}, "missing 8.bias; nothing unexpected"),
    "one too many": (lambda s: {**s, "11.bias": torch.ones(3)}, "nothing missing; unexpected 11.bias"),
    "empty": (lambda s: {}, "missing 0.weight, 1.weight, 1.bias"),
    "quantised": (lambda s: {**s, "0.weight": s["0.weight"].to(torch.int8)}, "0.weight is torch.int8, the model's torch.float32"),
    "numbers instead of tensors": (lambda s: {"0.weight": 1.0}, "a mapping with 0.weight, not a state dict"),
    "keys that are no names": (lambda s: {0: torch.ones(1)}, "not a state dict"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_weights_that_do_not_fit(tmp_path, name):
    change, message = MISFITS[name]
    torch.save(change(digits_cnn().state_dict()), tmp_path / "w.pt")
    with pytest.raises(LoadError) as raised:
        load_model(CNN, weights=tmp_path / "w.pt")
    assert message in str(raised.value)


def test_a_prefix_all_names_of_the_model_carry_is_put_on(tmp_path, monkeypatch):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = digits_cnn()

    monkeypatch.setattr(sys.modules[__name__], "wrapped", Wrapped, raising=False)
    torch.save(digits_cnn().state_dict(), tmp_path / "w.pt")
    with pytest.warns(LoadWarning, match=r"with the prefix 'net\.'"):
        loaded = load_model(f"{__name__}:wrapped", weights=tmp_path / "w.pt")
    assert list(loaded.state_dict()) == [f"net.{name}" for name in digits_cnn().state_dict()]


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def test_tied_weights_may_be_in_the_file_once(tmp_path):
    model = tied()
    save_model(model, str(tmp_path / "w.safetensors"))
    first, second = load_model(f"{__name__}:tied", weights=tmp_path / "w.safetensors").children()
    assert second.weight is first.weight
    torch.testing.assert_close(second.weight, model.get_parameter("0.weight"), rtol=0, atol=0)


def test_a_model_without_parameters(tmp_path):
    with pytest.raises(LoadError, match="no parameters to train"):
        load_model("torch.nn:ReLU")
