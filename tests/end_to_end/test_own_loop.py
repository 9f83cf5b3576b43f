"""The own-loop example trains, at the exact density, with at most three added lines."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "README.md"
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


def test_the_loop_of_the_readme_makes_the_rounds_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    section = text[text.index("## In your own loop") :]
    scope: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], scope)
    trainer = scope["trainer"]
    assert (trainer.steps, trainer.counts["rounds"]) == (28, 6)
    assert "28 steps and 6 rounds" in section
    assert trainer.density == round(0.1 * trainer.program.costs().maskable) / trainer.program.costs().maskable


def test_at_most_three_added_lines():
    assert EXAMPLE.read_text().count("# added") <= 3
