"""Names are names."""

from __future__ import annotations

import pytest

from sparsify.ir.foreign import checked_identifier, checked_path


def test_names():
    assert [checked_identifier(text) for text in ("x", "größe", "max_1")] == ["x", "größe", "max_1"]
    assert [checked_path(text) for text in ("0.weight", "layers.my-layer.weight", "a b.c/d")]
    for rule, bad in ((checked_identifier, ("", "1x", "a b", "if", "self", "x" * 2000, "__import__", "a;b", "a\n")),
                      (checked_path, ("", "a..b", "a.", '"', "a.\\x", "a.__class__.b", "a\nb", "x" * 2000))):  # fmt: skip
        for text in bad:
            with pytest.raises(ValueError):
                rule(text)
