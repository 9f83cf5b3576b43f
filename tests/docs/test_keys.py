"""Keys of a recipe in the documentation are written as the command takes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparsify.runs.keys import TABLES, spelt
from sparsify.runs.pairs import parse_pairs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FLAT = sorted(
    {f for keys in TABLES.values() for key, f in keys.items() if f.endswith(("_options",)) or f == f"export_{key}"}
)
"""Fields of `Recipe` that no table and no public function calls so."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_write_keys_with_their_tables(page):
    text = page.read_text()
    assert not (found := re.findall(rf"\b(?:{'|'.join(FLAT)})\b.*", text)), [spelt(name) for name in found]
    for pair in re.findall(r"--set[ =]\"?([\w.-]+=[^\s`\"]+)", text):
        if not pair.startswith(("key=", "table.key=", "method.options.key=", "grid.")):
            parse_pairs([pair])


def test_the_fields_that_have_another_name_in_a_file_are_known():
    assert FLAT == ["export_batch", "export_input", "export_precision", "method_options", "task_options"]
