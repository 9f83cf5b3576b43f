"""A cost model: predicted times of dense and grouped linear layers in ONNX Runtime, from their sizes and the number of rows.

The constants were fitted by least squares to chains of layers with width 32 to 1024, 8 to 64 outputs per group, 5 to 60 % of the inputs,
and 1 to 128 rows (ONNX Runtime 1.31, one AVX2 core). Half of the predictions are within 10 % of the measurement. Only ratios of times are
used.
"""

from __future__ import annotations

from dataclasses import dataclass

PICKED, PICKED_OPEN = 256, 512
"""Least number of indices for which a matrix of one row [1, F] is selected from by a special operator; the second if the batch is open."""
BRANCH = 3.0
"""Microseconds of the `If` around such a selection in a file with an open batch."""
MANY = 64
"""Number of rows that is assumed for a layer about which nothing is known."""
LARGE = 1 << 18
"""Number of weights of a dense layer above which each further weight takes longer to read."""


@dataclass(frozen=True)
class Use:
    """How a linear layer is called.

    Attributes:
        rows: number of vectors that it computes per call: the batch size times the tokens per sample.
        matrix: whether its input is [N, F]; otherwise there are dimensions in between, such as tokens.
        picks: whether a special operator may select from a matrix of one row.
        open: whether the batch is open, so that such a selection is in a branch.
    """

    rows: int = MANY
    matrix: bool = False
    picks: bool = True
    open: bool = True

    def is_picked(self, lines: int, chunk: int) -> bool:
        """Return whether the special operator for one row selects this many indices."""
        least = PICKED_OPEN if self.open else PICKED
        return self.rows == 1 and self.matrix and self.picks and chunk == 1 and lines >= least


def dense_time(use: Use, outputs: int, inputs: int) -> float:
    """Predict the microseconds of a dense layer with bias and activation; over tokens, these two are separate operators."""
    weights = outputs * inputs
    read = 0.09 * weights + 0.33 * max(0, weights - LARGE)
    return (0.6 if use.matrix else 1.7) + 1e-3 * (read + 0.025 * weights * use.rows + 0.3 * outputs * use.rows)


def grouped_time(use: Use, outputs: int, groups: int, kept: int, chunk: int) -> float:
    """Predict the microseconds of a selection and a product in groups.

    Args:
        use: how the layer is called.
        outputs: number of outputs of all groups together.
        groups: number of groups.
        kept: number of inputs that each group reads.
        chunk: number of adjacent inputs that are selected together.
    """
    lines, weights, rows = groups * kept // chunk, outputs * kept, use.rows
    if use.is_picked(lines, chunk):
        return 2.1 + 0.09 * groups + 1e-3 * (1.0 * lines + 0.11 * weights)
    copied = 11 * lines + 0.2 * groups * kept * rows
    calls = 1.5 + (1.0 if chunk > 1 else 0.0) + (0.05 if rows == 1 else 0.09) * groups
    return calls + 1e-3 * (copied + (0.12 if rows == 1 else 0.28 + 0.025 * rows) * weights)


def follow_time(use: Use, outputs: int, inputs: int) -> float:
    """Predict how many microseconds longer a dense layer takes on feature-major values; a product with few columns is inefficient."""
    few = max(0.0, 1 - use.rows / 16) if use.rows > 1 else 0.0
    return 0.5 + 0.3e-3 * few * outputs * inputs


def turn_time(use: Use, features: int) -> float:
    """Predict the microseconds to turn a value into the feature-major form, or back."""
    return 0.5 + 0.15e-3 * features * use.rows


def norm_time(use: Use, features: int) -> float:
    """Predict how many microseconds longer a layer norm takes on a feature-major value, where it is many operators instead of one."""
    return 3.5 + 0.5e-3 * features * use.rows
