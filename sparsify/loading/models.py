"""Models: a factory or an exported program, with weights from a file."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsify.errors import LoadError
from sparsify.loading.exported import load_exported
from sparsify.loading.factories import call_factory


def digits_cnn() -> nn.Module:
    """The small CNN of the embedded digits job: 8x8 images, 10 classes."""
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


def load_model(text: str, *, weights: Path | None = None, trust_pickle: bool = False) -> nn.Module:
    """A model from ``file.py:factory``, ``package.module:factory`` or ``model.pt2``.

    Args:
        text: which model; a factory takes no arguments.
        weights: safetensors, or a state dict that torch saved; every name and shape must fit.
        trust_pickle: let a file of weights run the code it may contain.

    Raises:
        LoadError: If the model cannot be made, is no module, or the weights do not fit.
    """
    if text.endswith((".pt", ".pth", ".pkl", ".bin")):
        raise LoadError(
            f"{text} may be a pickled module, which can run code when it is loaded. Give the model as file.py:factory and this "
            f"file's state dict with --weights."
        )
    model = load_exported(Path(text)) if text.endswith(".pt2") else call_factory(text, gives="model")
    if not isinstance(model, nn.Module):
        raise LoadError(f"the factory {text!r} returned {type(model).__name__}; it should return a torch.nn.Module.")
    if weights is not None:
        _load_weights(model, weights, trust_pickle=trust_pickle)
    return model


def _load_weights(model: nn.Module, path: Path, *, trust_pickle: bool) -> None:
    given, own = _read_weights(path, trust_pickle=trust_pickle), model.state_dict()
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    if missing or unexpected:
        raise LoadError(
            f"{path} does not fit the model: {_listed('missing', missing)}; {_listed('unexpected', unexpected)}."
            f"{_hint(missing, unexpected)}"
        )
    shapes = [
        f"{n} is {list(given[n].shape)}, the model's {list(own[n].shape)}"
        for n in own
        if given[n].shape != own[n].shape
    ]
    if shapes:
        raise LoadError(
            f"{path} does not fit the model: {'; '.join(shapes[:6])}. Build the model the weights were saved from."
        )
    stray = [
        name for name, value in given.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if stray:
        raise LoadError(f"{path} holds NaN or infinity in {', '.join(stray[:6])}. Use another checkpoint.")
    model.load_state_dict(given)


def _read_weights(path: Path, *, trust_pickle: bool) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise LoadError(f"there is no file {path}. Check --weights.")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        raise LoadError(
            f"{path} holds more than tensors, and loading it could run code: refused. Save the state dict alone, best as safetensors, or "
            f"give --trust-pickle if you trust whoever made the file."
        ) from error
    except (
        SafetensorError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        ImportError,
    ) as error:
        raise LoadError(
            f"{path} cannot be read as weights: {str(error).splitlines()[0]}. It may be damaged."
        ) from error
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise LoadError(f"{path} holds {type(content).__name__}, not a state dict of tensors. Save model.state_dict().")
    return content


def _listed(title: str, names: list[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{title} {', '.join(names[:6])}{more}" if names else f"nothing {title}"


def _hint(missing: list[str], unexpected: list[str]) -> str:
    prefixes = {name.removesuffix(want) for want in missing for name in unexpected if name.endswith(f".{want}")}
    if len(prefixes) == 1:
        return f" Every name carries the prefix {prefixes.pop()!r}; save the state dict without it."
    near = [(want, close[0]) for want in missing[:3] if (close := difflib.get_close_matches(want, unexpected, n=1))]
    return " Nearest: " + ", ".join(f"{a} and {b}" for a, b in near) + "." if near else ""
