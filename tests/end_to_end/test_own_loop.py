"""The own-loop example trains, at the exact density, with at most three added lines."""

from __future__ import annotations

import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_loop.py"


def test_own_loop():
    spec = importlib.util.spec_from_file_location("own_loop", EXAMPLE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    accuracy, density = module.main()
    maskable = 32 * 9 + 512 * 128 + 128 * 10
    assert density == round(0.1 * maskable) / maskable
    assert accuracy > 0.93


def test_at_most_three_added_lines():
    assert EXAMPLE.read_text().count("# added") <= 3
