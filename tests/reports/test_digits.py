"""Times are shown with three significant digits."""

from __future__ import annotations

import pytest

from sparsify.reports.digits import three_digits


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"), (0.000861, "0.000861"), (0.00861, "0.00861"), (0.0090349, "0.00903"), (0.09996, "0.100"), (0.5, "0.500"),
        (1.25, "1.25"), (9.999, "10.0"), (12.34, "12.3"), (99.99, "100"), (123.4, "123"), (999.9, "1,000"), (1234.5, "1,234"),
    ],
)  # fmt: skip
def test_three_significant_digits(value, shown):
    assert three_digits(value) == shown
