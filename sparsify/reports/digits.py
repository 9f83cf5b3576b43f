"""Times as they are shown."""

from __future__ import annotations

import math


def three_digits(value: float) -> str:
    """Format a time with three significant digits, so that times agree with the ratio shown beside them. From 1,000, show whole numbers.

    Examples:
        >>> [three_digits(value) for value in (0.00861, 0.5, 1.25, 99.99, 1234.5)]
        ['0.00861', '0.500', '1.25', '100', '1,234']
    """
    rounded = float(f"{value:.3g}")
    decimals = max(2 - math.floor(math.log10(abs(rounded))), 0) if rounded else 0
    return f"{value:,.{decimals}f}"
