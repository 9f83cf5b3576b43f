"""Counts the spikes of a spiking network: rates per layer and step, silent and saturated neurons, and accumulations per sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.ir import surgery
from sparsify.ir.copying import viewed
from sparsify.ir.evaluation import outputs_over
from sparsify.ir.neurons import lif
from sparsify.ir.nodes import MASK_OPERATORS
from sparsify.ir.products import Macs, is_product
from sparsify.ir.program import Program
from sparsify.ir.traits import argument, input_of, operands, state_name
from sparsify.parts.samples import Samples, Subset

BATCH = 64
"""Samples of a pass: the spikes of all layers are in memory at once."""


@dataclass(frozen=True)
class LayerSpikes:
    """The spikes of a layer of neurons over some samples.

    Attributes:
        layer: path of the module that holds its leak and threshold.
        neurons: how many it has.
        rates: share of the neurons that fire, by step, in [0, 1].
        silent: how many neurons fired for no sample in no step.
        saturated: how many fired for every sample in every step.
    """

    layer: str
    neurons: int
    rates: tuple[float, ...]
    silent: int
    saturated: int

    @property
    def rate(self) -> float:
        """The mean over the steps."""
        return sum(self.rates) / len(self.rates)


@dataclass(frozen=True)
class Work:
    """What the products of a network compute per sample, as means over some samples; inactive weights compute nothing.

    Attributes:
        macs: multiply-accumulates with inputs that are not whole numbers, as pictures are.
        accumulates: additions of a weight: products with spikes, and sums of them, where the input is not 0.
    """

    macs: float
    accumulates: float


def is_spiking(program: Program) -> bool:
    """Return whether a program has layers of neurons."""
    return any(node.target is lif for node in program.phases["eval"].graph.nodes)


def spikes_over(program: Program, samples: Samples) -> tuple[tuple[LayerSpikes, ...], Work]:
    """Run the eval phase over samples and count.

    Args:
        program: with layers of neurons; it does not change.
        samples: with inputs for the program.
    """
    view = viewed(program, "eval")
    nodes = list(view.phases["eval"].graph.nodes)
    layers = [node for node in nodes if node.target is lif]
    products = [node for node in nodes if is_product(node) and isinstance(input_of(node), fx.Node)]
    macs, shares = Macs(view), {node: _density(program, node) for node in products}
    watched = {
        node: f"watched_{place}" for place, node in enumerate(dict.fromkeys([*layers, *map(input_of, products)]))
    }
    for node, name in watched.items():
        surgery.append_output(view, "eval", name, node)
    surgery.finish(view)
    fired: dict[fx.Node, Tensor] = {}
    ever: dict[fx.Node, Tensor] = {}
    always: dict[fx.Node, Tensor] = {}
    multiplied = added = 0.0
    for first in range(0, len(samples), BATCH):
        rows = torch.arange(first, min(first + BATCH, len(samples)))
        found = outputs_over(view, Subset(samples, rows), names={*watched.values()}, batch_size=BATCH)
        for node in layers:
            spikes = found[watched[node]].unflatten(0, (int(argument(node, "steps")), -1))
            shares_fired = spikes.reshape(*spikes.shape[:2], -1).double().mean(2).sum(1)
            fired[node] = shares_fired + fired[node] if node in fired else shares_fired
            ever[node] = ever.get(node, torch.tensor(False)) | (spikes > 0).flatten(0, 1).any(0)
            always[node] = always.get(node, torch.tensor(True)) & (spikes > 0).flatten(0, 1).all(0)
        for node in products:
            value, count = found[watched[input_of(node)]], (macs.of(node) or 0) * shares[node] * len(rows)
            if bool((value == value.round()).all()):
                added += count * float((value != 0).double().mean())
            else:
                multiplied += count
    total = len(samples)
    counted = tuple(
        LayerSpikes(
            state_name(node, "leak").removesuffix(".leak"),
            ever[node].numel(),
            tuple((fired[node] / total).tolist()),
            int((~ever[node]).sum()),
            int(always[node].sum()),
        )
        for node in layers
    )
    return counted, Work(multiplied / total, added / total)


def mean_rate(layers: tuple[LayerSpikes, ...]) -> float:
    """Return the share of all neurons of a network that fire in a step, as a mean over the steps."""
    return sum(layer.rate * layer.neurons for layer in layers) / sum(layer.neurons for layer in layers)


def _density(program: Program, node: fx.Node) -> float:
    """Return the active share of the weight that a product reads; 1 without a mask."""
    for value in operands(node):
        if isinstance(value, fx.Node) and value.target in MASK_OPERATORS:
            return float(program.get_buffer(state_name(value, "mask")).double().mean())
    return 1.0
