"""Loads models from a factory or an exported program, with weights from a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sparsify.errors import LoadError
from sparsify.loading.exported import load_exported
from sparsify.loading.factories import call_factory
from sparsify.loading.weights import load_weights, read_tensors


def digits_cnn() -> nn.Module:
    """Return a small CNN for 8x8 images of 10 classes."""
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
    """Return the CNN of the embedded digits job, wide enough that sparse layers are fast: 8x8 images, 10 classes, 0.93 million weights."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 128), (128, 256), (256, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        if outputs == 128:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


PICKLED = (".pt", ".pth", ".pkl", ".bin", ".ckpt")


def load_model(text: str, *, weights: Path | None = None, trust_pickle: bool = False) -> nn.Module:
    """Load a model from ``file.py:factory``, ``package.module:factory``, ``model.pt2`` or, if pickles are trusted, ``model.pt``.

    Args:
        text: which model; a factory takes no arguments.
        weights: safetensors, or a state dict saved by torch (see `sparsify.loading.weights`); all names and shapes must fit.
        trust_pickle: allow the files of model and weights to run the code that they may contain.

    Raises:
        LoadError: If the model cannot be loaded or is not a module, or the weights do not fit.
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
        load_weights(model, weights, trust_pickle=trust_pickle)
    return model


def _unpickled(path: Path, *, trust_pickle: bool) -> nn.Module:
    if not trust_pickle:
        raise LoadError(
            f"{path} may be a pickled module, which can run code when it is loaded. Give the model as file.py:factory and this "
            f"file's state dict with --weights, or give --trust-pickle if you trust its source."
        )
    content = read_tensors(path, trust_pickle=True)
    if isinstance(content, torch.jit.ScriptModule):
        raise LoadError(f"{path} is a TorchScript module, which cannot be exported. Give the model as file.py:factory.")
    if not isinstance(content, nn.Module):
        raise LoadError(
            f"{path} holds {type(content).__name__}, not a module. Give the model as file.py:factory and this file with --weights."
        )
    return content
