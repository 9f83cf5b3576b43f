"""One torch thread, a fixed seed before each test, the exporter's table of operators made once."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.onnx._internal import _lazy_import


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="how often the kill test kills a run (20 takes minutes)")
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from what the code prints")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _operators_are_read_once() -> None:
    """Every export of torch.onnx parses 500 functions of onnxscript, always the same: half of its time for a small network."""
    lazy = getattr(_lazy_import, "onnxscript_apis", None)
    if lazy is not None:
        vars(lazy)["get_torchlib_ops"] = functools.cache(lambda: type(lazy).__getattr__(lazy, "get_torchlib_ops")())


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))
