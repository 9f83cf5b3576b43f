"""Spoiled files of every kind: none runs code, writes a file, takes more than 1 GiB or 10 s, or ends in anything but our error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.campaign import campaign
from tests.fuzz.kinds import KINDS
from tests.fuzz.watch import watched


def test_nothing_escapes(monkeypatch):
    monkeypatch.setenv("SPARSIFY_CACHE", "off")  # which the campaign sets, and nobody else wants
    found = list(campaign(300, 1))
    escaped = [(kind, number, outcome.detail) for kind, number, outcome, _ in found if outcome.kind == "escaped"]
    assert escaped == []
    tally = found[-1][3]
    assert {*tally} == {kind.name for kind in KINDS} and all(row.ends for row in tally.values())
    assert sum(row.ends["refused"] for row in tally.values()) > 150


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_is_not_spoiled_is_accepted(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSIFY_CACHE", "off")
    path = kind.good(tmp_path)
    outcome = watched(lambda: kind.read(path), tmp_path, writes=kind.writes)
    assert outcome.kind == "accepted", outcome.detail


@pytest.mark.parametrize(("name", "escape"), [
    ("an error of Python", lambda: {}["x"]),
    ("a file", lambda: Path("canary").write_text("x")),
    ("a file elsewhere", lambda: Path.home().joinpath("no", "such").write_text("x")),
    ("a command", lambda: subprocess.run([sys.executable, "-c", ""], check=True)),
    ("another command", lambda: os.system("true")),
])  # fmt: skip
def test_the_watch_sees_an_escape(tmp_path, monkeypatch, name, escape):
    monkeypatch.chdir(tmp_path)
    assert watched(escape, tmp_path, writes=False).kind == "escaped", name
    assert watched(lambda: None, tmp_path, writes=False).kind == "accepted"
