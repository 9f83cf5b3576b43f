"""Every public function and class, called with values of every other kind: an error of the package, with a message, or a result."""

from __future__ import annotations

import enum
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify import passes
from sparsify.errors import SparsifyError

VALUES: tuple[Any, ...] = (
    None, 3, -1, 0, 90, 2.5, float("nan"), float("inf"), True, "x", "", b"x", [], (), {}, [None], {"a": 1}, object(), int, len,
    torch.ones(2), nn.Linear(2, 2), lambda *given, **named: None,
)  # fmt: skip
X = torch.rand(8, 16)
SOURCE = sp.trace(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), (X,), check=False)
ON_EVERY_STEP = (SOURCE.run_phase, SOURCE.logits, SOURCE.output_names)
"""How many arguments these have is left to Python to say: they are called on every step of a loop."""

TAKES_HALF_A_SECOND = (sp.export,)
"""Where a value is accepted; each parameter meets a third of the values there."""


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in sp.__all__:
        yield name, getattr(sp, name)
    for module in (sp.methods, passes):
        for name, value in vars(module).items():
            if not name.startswith("_"):
                yield f"{module.__name__.rpartition('.')[2]}.{name}", value
    for name in ("save", "load", "run_phase", "outputs", "logits", "output_names"):
        yield f"Program.{name}", getattr(SOURCE, name)
    yield "Pipeline.parse", sp.Pipeline.parse
    yield "Pipeline()", sp.Pipeline(())
    yield "Pipeline.run", sp.Pipeline(()).run
    yield "Preprocessing.inputs", sp.Preprocessing().inputs
    yield "Preprocessing.stored", sp.Preprocessing().stored


DOORS = {
    name: value
    for name, value in public()
    if callable(value)
    and getattr(value, "__module__", "").startswith("sparsify")
    and not (isinstance(value, type) and (issubclass(value, enum.Enum) or inspect.isabstract(value)))
}
"""Without enumerations, and classes of which there are no values."""


def fitting(folder) -> dict[str, Any]:
    """Arguments that fit, by the names that parameters have everywhere."""
    program = SOURCE.clone()
    return {
        "base": sp.methods.rigl(density=0.1),
        "method": sp.methods.rigl(density=0.1),
        "density": 0.1,
        "program": program,
        "optimizer": torch.optim.SGD(program.parameters(), lr=0.1),
        "total_steps": 40,
        "path": folder / "file",
        "inputs": [X],
        "model": nn.Linear(16, 3),
        "args": (X,),
        "name": "rigl",
        "given": {"density": 0.1},
        "start_at": 1,
        "every": 1,
        "write": len,
        "phase": "eval",
    }


def calls(door: Callable[..., Any], folder) -> Iterator[tuple[str, Callable[[], Any]]]:
    signature = inspect.signature(door.__init__ if isinstance(door, type) else door)
    known = [p for p in signature.parameters.values() if p.name != "self"]
    named = [p.name for p in known if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if door not in ON_EVERY_STEP:
        yield "()", lambda: door()
        yield "(nonsense=3)", lambda: door(nonsense=3)
    for index, value in enumerate(VALUES):
        yield f"({value!r})", lambda value=value: door(value)
        for place, name in enumerate(named):
            if door in TAKES_HALF_A_SECOND and (index + place) % 3:
                continue

            def call(name=name, value=value):
                have = fitting(folder)
                needed = {p.name: have[p.name] for p in known if p.default is p.empty and p.name in have}
                return door(**{**needed, name: value})

            yield f"({name}={value!r})", call


@pytest.mark.parametrize("name", DOORS)
def test_a_value_of_another_kind_ends_with_an_error_of_the_package(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    wrong = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call, function in calls(DOORS[name], tmp_path):
            try:
                function()
            except SparsifyError as error:
                if len(str(error)) < 20 or not str(error).strip().endswith((".", ")")):
                    wrong.append(f"{name}{call}: says only {str(error)!r}")
            except Exception as error:
                wrong.append(f"{name}{call}: {type(error).__name__}: {str(error)[:100]}")
    assert not wrong, "\n".join(wrong)
    assert capfd.readouterr().err == ""


def test_they_are_all():
    assert {"attach", "trace", "export", "Method", "methods.rigl", "methods.build", "passes.InsertMasks"} <= {*DOORS}
    assert len(DOORS) > 55
