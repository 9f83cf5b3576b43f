"""How long linear layers take in ONNX Runtime, dense and grouped, as a function of their sizes and of the rows they compute.

The constants are fitted by least squares to chains of layers of width 32 to 1024, 8 to 64 outputs a group, 5 to 60 % of the inputs and 1 to
128 rows (ONNX Runtime 1.31, one AVX2 core): half of the predictions are within 10 % of the measurement. Only ratios are used.
"""

from __future__ import annotations

from dataclasses import dataclass

PICKED, PICKED_OPEN = 256, 512
"""Indices from which the only row of a matrix [1, F] is selected by an operator of its own, and where the batch is open."""
BRANCH = 3.0
"""Microseconds of the `If` that a file of open batch computes such selections in."""
MANY = 64
"""Rows of a layer of which nothing is known."""
LARGE = 1 << 18
"""Weights of a dense layer above which each takes longer to read."""


@dataclass(frozen=True)
class Use:
    """How a linear layer is called.

    Attributes:
        rows: vectors it computes in a call: the batch, times the tokens of a sample.
        matrix: its input is [N, F]; otherwise there are dimensions between, such as tokens.
        picks: a single row of a matrix may be selected by an operator of its own.
        open: the batch is open, so that such a selection stands in a branch.
    """

    rows: int = MANY
    matrix: bool = False
    picks: bool = True
    open: bool = True

    def is_picked(self, lines: int, chunk: int) -> bool:
        """Whether so many indices are selected by the operator for a single row."""
        least = PICKED_OPEN if self.open else PICKED
        return self.rows == 1 and self.matrix and self.picks and chunk == 1 and lines >= least


def dense_time(use: Use, outputs: int, inputs: int) -> float:
    """Microseconds of a dense layer, its bias and an activation; over tokens these are operators of their own."""
    weights = outputs * inputs
    read = 0.09 * weights + 0.33 * max(0, weights - LARGE)
    return (0.6 if use.matrix else 1.7) + 1e-3 * (read + 0.025 * weights * use.rows + 0.3 * outputs * use.rows)


def grouped_time(use: Use, outputs: int, groups: int, kept: int, chunk: int) -> float:
    """Microseconds of a selection and a product in groups.

    Args:
        use: how the layer is called.
        outputs: of all groups.
        groups: their number.
        kept: inputs that each group reads.
        chunk: inputs that are selected together.
    """
    lines, weights, rows = groups * kept // chunk, outputs * kept, use.rows
    if use.is_picked(lines, chunk):
        return 2.1 + 0.09 * groups + 1e-3 * (1.0 * lines + 0.11 * weights)
    copied = 11 * lines + 0.2 * groups * kept * rows
    calls = 1.5 + (1.0 if chunk > 1 else 0.0) + (0.05 if rows == 1 else 0.09) * groups
    return calls + 1e-3 * (copied + (0.12 if rows == 1 else 0.28 + 0.025 * rows) * weights)


def follow_time(use: Use, outputs: int, inputs: int) -> float:
    """Microseconds that a dense layer takes longer where its values are feature-major: a product with few columns wastes most of each."""
    few = max(0.0, 1 - use.rows / 16) if use.rows > 1 else 0.0
    return 0.5 + 0.3e-3 * few * outputs * inputs


def turn_time(use: Use, features: int) -> float:
    """Microseconds to make a value feature-major, or the reverse."""
    return 0.5 + 0.15e-3 * features * use.rows


def norm_time(use: Use, features: int) -> float:
    """Microseconds that a layer norm of a feature-major value takes longer than one of rows: it is many operators instead of one."""
    return 3.5 + 0.5e-3 * features * use.rows
