"""Plots are made, and not drawn: a fifth of the time of a run here was spent by matplotlib on ticks and text."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from markupsafe import Markup

from sparsify.reports import plots


@pytest.fixture(scope="module", autouse=True)
def _undrawn() -> Generator[None]:
    """Leave the drawing of a finished figure to tests/reports, and to the commands that run in processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            plots, "svg", lambda figure, label, prefix: Markup('<svg role="img" aria-label="{}"></svg>').format(label)
        )
        yield
