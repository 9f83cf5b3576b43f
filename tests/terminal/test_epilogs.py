"""Help below the options: markup is escaped, and every key is an option or listed."""

from __future__ import annotations

from sparsify.terminal.epilogs import examples, other_keys


def test_examples_by_hand():
    assert examples("sparsify run", "sparsify opt p [x]", more="More.") == (
        "[bold]Examples[/bold]\n\n$ sparsify run\n\n$ sparsify opt p \\[x]\n\nMore."
    )


def test_keys_without_an_option_are_listed_with_their_defaults():
    text = other_keys("model", "data")
    assert "export.precision=fp32" in text and "model.weights=none" in text and "model.source=" not in text
