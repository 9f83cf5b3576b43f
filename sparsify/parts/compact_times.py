"""Predicts whether a training step is faster with a weight that is stored compact than with a masked one.

The constants are rounded by hand from what `benchmarks/compact_layers.py` measures: pairs of linear layers of 64 to 512 outputs over 16 to
4096 rows, and of 3 x 3 convolutions of 32 to 128 channels, on one busy AVX2 core with PyTorch 2.13. Only their ratios matter. The
prediction depends on nothing but the weight, so that a run takes the same form on every machine.
"""

from __future__ import annotations

import math

SAMPLES = 64
"""Samples of a batch that are assumed."""
PRODUCT = 75e-6
"""Microseconds per multiply-accumulate of the forward pass of a dense layer, for the whole step."""
GROUPED = 1.05
"""How much longer one takes in groups."""
SELECTED, SELECTED_FAR = 2.8e-3, 8e-3
"""Microseconds per selected value, and where they do not fit into the cache, for the whole step."""
CACHED = 1 << 20
"""Selected values of a linear layer that fit into the cache."""
ADDED = 60.0
"""Microseconds of what a compact layer adds in any case."""
LEAST_GAIN = 1.05
"""Predicted speed-up from which a weight is stored compact."""


def pays(shape: tuple[int, ...], share: float, positions: int, rows: int) -> bool:
    """Predict whether a step is faster compact.

    Args:
        shape: of the weight, [O, I, *K].
        share: share of the inputs that each output reads, in (0, 1).
        positions: outputs computed per sample and channel: pixels of a convolution, tokens of a linear layer.
        rows: outputs per group.
    """
    if len(shape) == 3:
        return False  # PyTorch computes a grouped conv1d about as fast as a dense one
    products = SAMPLES * positions * math.prod(shape)
    selected = SAMPLES * positions * shape[1] * share * shape[0] / rows
    far = len(shape) == 2 and selected > CACHED
    compact = PRODUCT * GROUPED * products * share + (SELECTED_FAR if far else SELECTED) * selected + ADDED
    return PRODUCT * products > LEAST_GAIN * compact
