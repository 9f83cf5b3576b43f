"""Evaluations by hand."""

from __future__ import annotations

import pytest

from sparsify.parts.compute import evaluations


@pytest.mark.parametrize(
    ("forwards", "backwards", "expected"), [(0, 0, 0.0), (19, 19, 19.0), (20, 19, 19.5), (6, 0, 3.0)]
)
def test_a_pass_alone_is_half(forwards, backwards, expected):
    assert evaluations(forwards, backwards) == expected
