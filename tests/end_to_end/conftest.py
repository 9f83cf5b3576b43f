"""Runs in this process draw no plots and rehearse the conversion of a model once: half of their time went into text and equal graphs."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from markupsafe import Markup

from sparsify.ir import Program
from sparsify.loading import Data
from sparsify.pages import plots
from sparsify.runs import preflight
from sparsify.runs.recipe import Recipe


@pytest.fixture(scope="module", autouse=True)
def _undrawn() -> Generator[None]:
    """Leave the drawing of a finished figure to tests/reports, and to the commands that run in processes of their own.

    Such commands are a run in test_plugins.py and the cells of the grid in test_compare.py, whose tests look for drawn lines.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            plots, "svg", lambda figure, label, prefix: Markup('<svg role="img" aria-label="{}"></svg>').format(label)
        )
        yield


@pytest.fixture(scope="module", autouse=True)
def _converted_once() -> Generator[None]:
    """Rehearse the conversion of a graph that this process has rehearsed before only in name; the run exports its model all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "check_export", _check_export_once)
        yield


_check_export = preflight.check_export
_CONVERTIBLE = set[tuple[object, ...]]()


def _check_export_once(program: Program, recipe: Recipe, data: Data) -> None:
    example = [(value.dtype, value.shape) for value in program.input_tensors(data.example())]
    keys = (recipe.task, recipe.calibrator, recipe.opset, len(data.validation) == 1, tuple(example))
    key = (*keys, str(program))
    if key not in _CONVERTIBLE:
        _check_export(program, recipe, data)
        _CONVERTIBLE.add(key)
