"""The version of the package, and those of what its figures depend on."""

from __future__ import annotations

import platform
from importlib import metadata

__version__ = "0.1.0.dev0"


def versions() -> dict[str, str]:
    """The versions of sparsify, Python, and the packages that a run's figures depend on, without importing them."""
    packages = {name: metadata.version(name) for name in ("torch", "onnx", "onnxruntime")}
    return {"sparsify": __version__, "python": platform.python_version(), **packages}
