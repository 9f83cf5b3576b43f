"""Progress bars, as text."""

from __future__ import annotations

import io

from rich.console import Console

from sparsify.bars import bars


def test_each_part_has_its_bar_and_its_last_state():
    text = io.StringIO()
    with bars(Console(file=text, width=100)) as shown:
        shown.decode(500, 2000)
        shown.step("dense", {"step": 3, "total": 10, "loss": 0.5, "accuracy": 0.75})
        shown.step("dense", {"step": 10, "total": 10, "loss": 0.25, "accuracy": 0.9})
    lines = text.getvalue().splitlines()
    assert any(line.startswith("decode") and "500 of 2,000 images" in line for line in lines)
    assert any(line.startswith("dense") and "loss 0.250 accuracy 0.900" in line for line in lines)
