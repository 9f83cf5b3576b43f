"""The tables that the command prints."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from torch import nn

import sparsify as sp
from sparsify import tables
from sparsify.methods.registry import METHODS
from sparsify.passes import PASSES
from tests.cases import case


def shown(table, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(table, crop=False, soft_wrap=True)
    return console.file.getvalue()


def test_long_names_of_weights_stay_whole():
    found = case("mlp")
    wrapped = nn.Sequential()
    wrapped.add_module("a_block_with_a_name_as_long_as_those_of_language_models_are", found.build())
    text = shown(tables.weights(sp.trace(wrapped, found.args)))
    assert "a_block_with_a_name_as_long_as_those_of_language_models_are.1.weight │ linear │ 32 x 64" in text


@pytest.mark.parametrize(("table", "names"), [(tables.methods, METHODS), (tables.passes, PASSES)])
def test_everything_registered_is_listed(table, names):
    text = shown(table(), width=200)
    assert all(f"│ {name} " in text for name in names)
