"""The version of the package, and those of what its figures depend on."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

__version__ = "0.1.0.dev0"


def versions(*packages_of: str) -> dict[str, str]:
    """The versions of sparsify, Python, and the packages that figures depend on, without importing them.

    Args:
        packages_of: names of packages; without any, those that the figures of a run depend on. One that is not installed is left out.
    """
    packages = dict[str, str]()
    for name in packages_of or ("torch", "onnx", "onnxruntime"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {"sparsify": __version__, "python": platform.python_version(), **packages}
