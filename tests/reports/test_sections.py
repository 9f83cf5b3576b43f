"""Rows of a report's sections, by hand."""

from __future__ import annotations

import pytest

from sparsify.reports.sections import facts


@pytest.mark.parametrize(("task", "classes", "shown"), [("classification", 10, "10"), ("multilabel", 0, None)])
def test_classes_are_told_only_of_data_that_have_some(task, classes, shown):
    data = {"name": "d.npz", "fingerprint": "0f", "task": task, "classes": classes, "samples": {"test": 270}}
    rows = dict(facts({"seed": 0, "recipe_hash": "1a", "versions": {}, "data": data}, None))
    assert rows.get("classes") == shown and rows["task"] == task and rows["samples, test"] == "270"
