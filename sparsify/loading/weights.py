"""Loads weights from a file: finds the state dict in a checkpoint, and matches its names with those of the model."""

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
"""Keys under which checkpoints store a state dict."""
MOST_WRAPPED = 4


def load_weights(model: nn.Module, path: Path, *, trust_pickle: bool) -> None:
    """Load a state dict from a file into a model.

    In a checkpoint, the state dict may be nested several levels deep: under one of `WRAPPINGS`, or under any other name if it is the only
    state dict. All its names may have one prefix more or less than those of the model (``module.`` of DataParallel, ``model.`` of a
    trainer); a `LoadWarning` names the prefix that was removed or added.

    Args:
        model: model whose parameters and buffers are overwritten.
        path: a safetensors file, or a file saved by torch.
        trust_pickle: allow the file to run the code that it may contain.

    Raises:
        LoadError: If the file cannot be read, or names, shapes or types do not fit.
    """
    own = model.state_dict()
    given, done = _fitted(_state_dict(path, trust_pickle=trust_pickle), own)
    tied = {
        tensor.data_ptr() for name, tensor in own.items() if name in given
    }  # a file may contain tied weights only once
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
    """Return whether a value is or contains a state dict, in nested mappings with string keys."""
    if not isinstance(value, Mapping):
        return isinstance(value, nn.Module)
    if value and _tensors(value):
        return True
    return deep > 1 and any(isinstance(key, str) and _wraps(inner, deep - 1) for key, inner in value.items())


def read_tensors(path: Path, *, trust_pickle: bool) -> Any:
    """Return the content of a file: only tensors and plain data, unless ``trust_pickle`` is True.

    Raises:
        LoadError: If the file is missing or damaged, or contains anything else.
    """
    if not path.is_file():
        raise LoadError(f"there is no file {path}. Check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # warnings of torch about TorchScript and old formats; the errors below say what matters
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        raise LoadError(
            f"{path} is damaged or holds more than tensors. It is refused because loading it could run code. Save only the state dict, "
            f"preferably as safetensors, or give --trust-pickle if you trust the source of the file."
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise LoadError(
                f"{path} is a TorchScript archive, which holds code, and is refused. Save only the state dict, preferably as safetensors."
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
    """Rename a state dict to the model's names if they differ only by a prefix; also returns what was done to the names."""
    for longer, shorter, done in ((given, own, "without"), (own, given, "with")):
        prefix = _prefix(longer, shorter)
        if prefix:
            cut = len(prefix)
            names = {name: name[cut:] if longer is given else prefix + name for name in given}
            return {names[name]: tensor for name, tensor in given.items()}, f"{done} the prefix {prefix!r}"
    return given, ""


def _prefix(longer: Mapping[str, Tensor], shorter: Mapping[str, Tensor]) -> str:
    """Return the prefix that turns the names in ``shorter`` into those in ``longer``; empty if there is no single such prefix."""
    names = list(longer)
    if not names or not shorter or set(names) & set(shorter):
        return ""
    first = names[0]
    parts = first.split(".")
    found = [".".join(parts[:n]) + "." for n in range(1, len(parts)) if ".".join(parts[n:]) in shorter]
    return next((p for p in found if all(n.startswith(p) and n[len(p) :] in shorter for n in names)), "")


def _hint(missing: list[str], unexpected: list[str], own: Mapping[str, Tensor]) -> str:
    """Return a hint at what may be wrong: a missing layer, or similar names."""
    if missing and not unexpected and len(missing) < len(own):
        layers = sorted({name.rpartition(".")[0] for name in missing})
        return (
            f" All other names match, so the file lacks the layer {_few(layers)}. To train it from scratch, load the rest in the factory: "
            f"model.load_state_dict(..., strict=False)."
        )
    near = [(want, close[0]) for want in missing[:3] if (close := difflib.get_close_matches(want, unexpected, n=1))]
    return " Nearest: " + ", ".join(f"{a} and {b}" for a, b in near) + "." if near else ""
