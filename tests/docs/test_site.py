"""The site of ``make docs``: its pages are in the navigation, its links lead somewhere, its reference has every public name."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.test_examples import PAGES, ROOT

DOCS = ROOT / "docs"
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]+))?\)")
ELSEWHERE = {"sparsify": {"__version__", "methods"}}
"""Public names without an entry on the page of their module: a string, and a module with a page of its own."""


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", FENCE.sub("", page), re.MULTILINE):
        words = re.sub(r"[^\w\s-]", "", title.encode("ascii", "ignore").decode()).strip().lower()
        base = anchor = re.sub(r"[-\s]+", "-", words)
        count = 0
        while anchor in found:
            count += 1
            anchor = f"{base}_{count}"
        found.add(anchor)
    return found


def broken(page: Path, text: str) -> list[str]:
    """The links of a page that lead nowhere."""
    lost: list[str] = []
    for target, anchor in LINK.findall(FENCE.sub("", text)):
        file = page.parent / target if target else page
        known = file.exists() and (not anchor or anchor in anchors(file.read_text(encoding="utf-8")))
        if not known:
            lost.append(f"{target}#{anchor}" if anchor else target)
    return lost


def public_modules() -> dict[str, Path]:
    """The modules that say in ``__all__`` what they offer."""
    found: dict[str, Path] = {}
    for path in sorted((ROOT / "sparsify").rglob("*.py")):
        targets = [
            target
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign)
            for target in node.targets
        ]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def reference(module: str) -> Path:
    """The page of the reference for a module."""
    name = module.removeprefix("sparsify").removeprefix(".").replace(".", "_")
    return DOCS / "reference" / f"{name or 'index'}.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](lost.md)", ["lost.md"]),
        ("[a](reports.md#lost)", ["reports.md#lost"]),
        ("[a](#lost)", ["#lost"]),
        ("[a](reports.md#what-the-proof-says), [b](../README.md), [c](https://x.y)\n```\n[d](lost.md)\n```", []),
    ],
)
def test_a_broken_link_is_found(text, expected):
    assert broken(DOCS / "index.md", text) == expected


def test_every_page_is_in_the_navigation_once():
    listed = re.findall(r"^ +- ([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("module", public_modules())
def test_a_public_module_has_a_page_of_reference(module):
    page = reference(module)
    assert page.is_file(), f"{module} has __all__ and no docs/reference/{page.name}; see the other pages there"
    assert f"\n::: {module}\n" in page.read_text(encoding="utf-8")


@pytest.mark.skipif(
    find_spec("zensical") is None or find_spec("mkdocstrings_handlers") is None,
    reason="needs the optional dependencies [docs]",
)
def test_the_site_builds_and_documents_every_public_name(tmp_path):
    for name in ("docs", "sparsify"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text())
    build = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "griffe" not in said, f"docstrings that do not fit their functions:\n{said}"
    for module in public_modules():
        html = (tmp_path / "site" / reference(module).relative_to(DOCS).with_suffix(".html")).read_text(
            encoding="utf-8"
        )
        names = set(importlib.import_module(module).__all__) - ELSEWHERE.get(module, set())
        missing = {name for name in names if f'id="{module}.{name}"' not in html}
        assert missing == set(), f"the reference of {module} lacks {sorted(missing)}"
    assert 'id="sparsify.methods.set"' in (tmp_path / "site/reference/methods.html").read_text(encoding="utf-8")
    hosts = {
        host
        for page in (tmp_path / "site").rglob("*.html")
        for host in re.findall(
            r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?://[^\"> ]+)", page.read_text(encoding="utf-8")
        )
    }
    assert hosts == set(), "pages load files of other hosts"
