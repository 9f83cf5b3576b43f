"""Every public name of the package and every method has an example in its docstring, which runs and prints what it says."""

from __future__ import annotations

import doctest
import inspect
from typing import Any

import pytest
import torch

import sparsify as sp

TOP = {name: getattr(sp, name) for name in sp.__all__ if name not in ("__version__", "methods")}
METHODS = {
    f"methods.{name}": value
    for name, value in vars(sp.methods).items()
    if inspect.isfunction(value) and not name.startswith("_")
}
DOCUMENTED: dict[str, Any] = {**TOP, **METHODS}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_of_a_public_name_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(DOCUMENTED[name]) or "", {}, name, None, 0)
    assert example.examples, f"sparsify.{name} has no example; write the section 'Examples:' in its docstring"
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert not said, "".join(said)
