"""Loads weights from a file: finds the state dict inside a checkpoint, and fits its names to the model's."""

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

from sparsify.errors import LoadError, LoadWarning

WRAPPINGS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params")
"""Keys under which checkpoints keep a state dict."""
MOST_WRAPPED = 4


def load_weights(model: nn.Module, path: Path, *, trust_pickle: bool) -> None:
    """Load a state dict into a model, whatever a checkpoint wraps around it.

    The state dict may stand under one of `WRAPPINGS`, or under any other name where it is the only one, several levels deep. All its names
    may carry one prefix more, or one less, than the model's (``module.`` of DataParallel, ``model.`` of a trainer); what was taken off or
    put on is said in a `LoadWarning`.

    Args:
        model: whose parameters and buffers are overwritten.
        path: of safetensors or of what torch saved.
        trust_pickle: let the file run the code it may contain.

    Raises:
        LoadError: If the file cannot be read, or names, shapes or types do not fit.
    """
    own = model.state_dict()
    given, done = _fitted(_state_dict(path, trust_pickle=trust_pickle), own)
    tied = {tensor.data_ptr() for name, tensor in own.items() if name in given}  # a file may hold tied weights once
    missing = [name for name, tensor in own.items() if name not in given and tensor.data_ptr() not in tied]
    unexpected = [name for name in given if name not in own]
    if missing or unexpected:
        raise LoadError(
            f"{path} does not fit the model: {_listed('missing', missing)}; {_listed('unexpected', unexpected)}."
            f"{_hint(missing, unexpected, own)}"
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
    if done:
        warnings.warn(f"{path}: weights are loaded {done}.", LoadWarning, stacklevel=3)


def _state_dict(path: Path, *, trust_pickle: bool) -> Mapping[str, Tensor]:
    content = read_tensors(path, trust_pickle=trust_pickle)
    if isinstance(content, nn.Module):
        content = content.state_dict()
    for _ in range(MOST_WRAPPED):
        if not isinstance(content, Mapping) or _tensors(content):
            break
        inner = [key for key in WRAPPINGS if isinstance(content.get(key), Mapping | nn.Module)]
        inner = inner or [key for key, value in content.items() if isinstance(key, str) and _wraps(value)]
        if len(inner) > 1:
            raise LoadError(f"{path} holds several state dicts: {_few(inner)}. Save the one to load with torch.save.")
        if not inner:
            break
        content = content[inner[0]]
        content = content.state_dict() if isinstance(content, nn.Module) else content
    if not isinstance(content, Mapping) or not _tensors(content):
        found = f"a mapping with {_few(map(str, content))}" if isinstance(content, Mapping) else type(content).__name__
        raise LoadError(f"{path} holds {found}, not a state dict of tensors. Save model.state_dict().")
    return content


def _wraps(value: object, deep: int = MOST_WRAPPED) -> bool:
    """Return whether a state dict lies somewhere in a value, under names."""
    if not isinstance(value, Mapping):
        return isinstance(value, nn.Module)
    if value and _tensors(value):
        return True
    return deep > 1 and any(isinstance(key, str) and _wraps(inner, deep - 1) for key, inner in value.items())


def read_tensors(path: Path, *, trust_pickle: bool) -> Any:
    """Return what a file holds; only tensors and plain data unless ``trust_pickle``.

    Raises:
        LoadError: If there is no such file, it is damaged, or it holds more than that.
    """
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
            f"{path} is damaged or holds more than tensors, and loading it could run code: refused. Save only the state dict, best as "
            f"safetensors, or give --trust-pickle if you trust whoever made the file."
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise LoadError(
                f"{path} is a TorchScript archive, which holds code: refused. Save only the state dict, best as safetensors."
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


def _tensors(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _fitted(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
    """Return the state dict under the model's names, where one prefix is all that differs, and what was done to its names."""
    for longer, shorter, done in ((given, own, "without"), (own, given, "with")):
        prefix = _prefix(longer, shorter)
        if prefix:
            cut = len(prefix)
            names = {name: name[cut:] if longer is given else prefix + name for name in given}
            return {names[name]: tensor for name, tensor in given.items()}, f"{done} the prefix {prefix!r}"
    return given, ""


def _prefix(longer: Mapping[str, Tensor], shorter: Mapping[str, Tensor]) -> str:
    """Return what every name in ``longer`` has in front of the one in ``shorter``; "" unless it is one text and all other parts agree."""
    names = list(longer)
    if not names or not shorter or set(names) & set(shorter):
        return ""
    first = names[0]
    parts = first.split(".")
    found = [".".join(parts[:n]) + "." for n in range(1, len(parts)) if ".".join(parts[n:]) in shorter]
    return next((p for p in found if all(n.startswith(p) and n[len(p) :] in shorter for n in names)), "")


def _hint(missing: list[str], unexpected: list[str], own: Mapping[str, Tensor]) -> str:
    """Return what may be wrong: the head is missing, or names differ a little."""
    if missing and not unexpected and len(missing) < len(own):
        layers = sorted({name.rpartition(".")[0] for name in missing})
        return (
            f" All else fits, so the file lacks the layer {_few(layers)}. To train it from scratch, load the rest inside the factory: "
            f"model.load_state_dict(..., strict=False)."
        )
    near = [(want, close[0]) for want in missing[:3] if (close := difflib.get_close_matches(want, unexpected, n=1))]
    return " Nearest: " + ", ".join(f"{a} and {b}" for a, b in near) + "." if near else ""
