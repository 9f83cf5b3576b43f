"""A model that is traced to be looked at."""

from __future__ import annotations

import pytest

from sparsify.errors import RecipeError
from sparsify.runs.tracing import traced_on_data, traced_without_data
from tests.runs.test_preflight import PICTURES


def test_a_trace_without_data_declares_what_varies(tmp_path):
    (tmp_path / "pictures.py").write_text(PICTURES)
    model = f"{tmp_path / 'pictures.py'}:build"
    program = traced_without_data(model, ["2x1x8x8"], dynamic=["input:2=H"])
    assert program.input_specs[0].shape == ("N", 1, "H", 8)


def test_a_trace_on_data_has_the_task_and_the_shapes_of_the_data():
    program = traced_on_data("sparsify.loading:digits_cnn", "digits", task="auto", logits="0")
    assert program.input_specs[0].shape == ("N", 1, 8, 8) and program.output_names("eval") == ("logits",)
    assert program.task is not None and program.task.name == "classification"


def test_a_custom_task_is_not_traced_on_data():
    with pytest.raises(RecipeError, match="is traced without its loss: give the shapes of the inputs by --input"):
        traced_on_data("sparsify.loading:digits_cnn", "digits", task="custom")
