"""One torch thread and a fixed seed before each test."""

from __future__ import annotations

import gc

import pytest
import torch

gc.set_threshold(50_000, 10, 10)
# Traced programs are millions of objects, and Python spent a tenth of all time walking over them.


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="how often the kill test kills a run (20 takes minutes)")
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from what the code prints")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))
