"""Models: a factory or an exported program, with weights from a file."""

from __future__ import annotations

import difflib
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsify.errors import LoadError
from sparsify.loading.exported import load_exported
from sparsify.loading.factories import call_factory


def digits_cnn() -> nn.Module:
    """A small CNN for 8x8 images of 10 classes."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 16, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def digits_wide_cnn() -> nn.Module:
    """The CNN of the embedded digits job, wide enough that sparse layers are fast: 8x8 images, 10 classes, 0.93 million weights."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 128), (128, 256), (256, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        if outputs == 128:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


PICKLED = (".pt", ".pth", ".pkl", ".bin", ".ckpt")


def load_model(text: str, *, weights: Path | None = None, trust_pickle: bool = False) -> nn.Module:
    """A model from ``file.py:factory``, ``package.module:factory``, ``model.pt2`` or, where pickles are trusted, ``model.pt``.

    Args:
        text: which model; a factory takes no arguments.
        weights: safetensors, or a state dict that torch saved; every name and shape must fit.
        trust_pickle: let the files of model and weights run the code they may contain.

    Raises:
        LoadError: If the model cannot be made, is no module, or the weights do not fit.
    """
    if text.endswith(PICKLED):
        model = _unpickled(Path(text), trust_pickle=trust_pickle)
    else:
        model = load_exported(Path(text)) if text.endswith(".pt2") else call_factory(text, gives="model")
    if not isinstance(model, nn.Module):
        raise LoadError(f"the factory {text!r} returned {type(model).__name__}; it should return a torch.nn.Module.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise LoadError(f"the model {text} has no parameters to train. Give a torch.nn.Module with weights.")
    if weights is not None:
        _load_weights(model, weights, trust_pickle=trust_pickle)
    return model


def _unpickled(path: Path, *, trust_pickle: bool) -> nn.Module:
    if not trust_pickle:
        raise LoadError(
            f"{path} may be a pickled module, which can run code when it is loaded. Give the model as file.py:factory and this "
            f"file's state dict with --weights, or give --trust-pickle if you trust whoever made the file."
        )
    content = _read(path, trust_pickle=True)
    if isinstance(content, torch.jit.ScriptModule):
        raise LoadError(f"{path} is a TorchScript module, which cannot be exported. Give the model as file.py:factory.")
    if not isinstance(content, nn.Module):
        raise LoadError(
            f"{path} holds {type(content).__name__}, not a module. Give the model as file.py:factory and this file with --weights."
        )
    return content


def _load_weights(model: nn.Module, path: Path, *, trust_pickle: bool) -> None:
    given, own = _state_dict(path, trust_pickle=trust_pickle), model.state_dict()
    tied = {tensor.data_ptr() for name, tensor in own.items() if name in given}  # a file may hold tied weights once
    missing = [name for name, tensor in own.items() if name not in given and tensor.data_ptr() not in tied]
    unexpected = [name for name in given if name not in own]
    if missing or unexpected:
        raise LoadError(
            f"{path} does not fit the model: {_listed('missing', missing)}; {_listed('unexpected', unexpected)}."
            f"{_hint(missing, unexpected)}"
        )
    shapes = [
        f"{name} is {list(given[name].shape)}, the model's {list(own[name].shape)}"
        for name in given
        if given[name].shape != own[name].shape
    ]
    if shapes:
        raise LoadError(f"{path} does not fit the model: {_few(shapes)}. Build the model the weights were saved from.")
    kinds = [
        f"{name} is {given[name].dtype}, the model's {own[name].dtype}"
        for name in given
        if given[name].is_floating_point() != own[name].is_floating_point()
    ]
    if kinds:
        raise LoadError(f"{path} does not fit the model: {_few(kinds)}. Quantised weights cannot be trained.")
    stray = [name for name, value in given.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if stray:
        raise LoadError(f"{path} holds NaN or infinity in {_few(stray)}. Use another checkpoint.")
    model.load_state_dict(given, strict=False)


def _state_dict(path: Path, *, trust_pickle: bool) -> Mapping[str, Tensor]:
    content = _read(path, trust_pickle=trust_pickle)
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        found = f"a mapping with {_few(map(str, content))}" if isinstance(content, Mapping) else type(content).__name__
        raise LoadError(f"{path} holds {found}, not a state dict of tensors. Save model.state_dict().")
    return content


def _read(path: Path, *, trust_pickle: bool) -> Any:
    """What a file holds; only tensors and plain data unless ``trust_pickle``."""
    if not path.is_file():
        raise LoadError(f"there is no file {path}. Check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch's, about TorchScript and old formats; what follows says what matters
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        raise LoadError(
            f"{path} is damaged or holds more than tensors, and loading it could run code: refused. Save the state dict alone, best as "
            f"safetensors, or give --trust-pickle if you trust whoever made the file."
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise LoadError(
                f"{path} is a TorchScript archive, which holds code: refused. Save the state dict alone, best as safetensors."
            ) from error
        text = (str(error).splitlines() or [""])[0]
        raise LoadError(
            f"{path} cannot be read as weights: {type(error).__name__}: {text}. It may be damaged; save it again."
        ) from error


def _few(texts: Iterable[str]) -> str:
    shown = list(texts)
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")


def _listed(title: str, names: list[str]) -> str:
    return f"{title} {_few(names)}" if names else f"nothing {title}"


def _hint(missing: list[str], unexpected: list[str]) -> str:
    """What may be wrong: a prefix all names carry on one side, or the nearest names."""
    for ours, theirs, advice in (
        (missing, unexpected, "in the file; save the state dict without it"),
        (unexpected, missing, "in the model; save the state dict of the whole model, or give the part as the model"),
    ):
        prefixes = {
            theirs_name[: -len(name)] for name in ours for theirs_name in theirs if theirs_name.endswith(f".{name}")
        }
        prefix = next((p for p in prefixes if {p + name for name in ours} == set(theirs)), None) if ours else None
        if prefix:
            return f" Every name carries the prefix {prefix!r} {advice}."
    near = [(want, close[0]) for want in missing[:3] if (close := difflib.get_close_matches(want, unexpected, n=1))]
    return " Nearest: " + ", ".join(f"{a} and {b}" for a, b in near) + "." if near else ""
