"""The top-level names and the methods have an example in their docstring; it runs and prints what it says, as do those of other names."""

from __future__ import annotations

import doctest
import importlib
import inspect
from typing import Any

import pytest
import torch

import sparsify as sp
from tests.docs.test_site import public_modules

TOP = {name: getattr(sp, name) for name in sp.__all__ if name not in ("__version__", "methods")}
METHODS = {
    f"methods.{name}": value
    for name, value in vars(sp.methods).items()
    if inspect.isfunction(value) and not name.startswith("_")
}
DOCUMENTED: dict[str, Any] = {
    **TOP,
    **METHODS,
    **{
        f"{module.removeprefix('sparsify.')}.{name}": getattr(importlib.import_module(module), name)
        for module in public_modules().keys() - {"sparsify", "sparsify.methods"}
        for name in importlib.import_module(module).__all__
        if ">>> " in (getattr(importlib.import_module(module), name).__doc__ or "")
    },
}


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_the_example_of_a_public_name_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(DOCUMENTED[name]) or "", {}, name, None, 0)
    assert example.examples, f"sparsify.{name} has no example; write the section 'Examples:' in its docstring"
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert not said, "".join(said)
