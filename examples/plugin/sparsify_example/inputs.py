"""An allocation: layers with few inputs keep a larger share of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sparsify.parts.allocation import Layer, proportional


def by_inputs(layers: Mapping[str, Layer], density: float) -> dict[str, int]:
    """Densities proportional to one over the root of a layer's inputs; the sum is exact."""
    return proportional(layers, density, {name: 1 / math.sqrt(layer.shape[1]) for name, layer in layers.items()})
