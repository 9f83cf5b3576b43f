"""Faults put into the integers of real files: each is refused, or every output is still what the program's is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sparsify.exporters.int8 import compared, refusal
from sparsify.timing import values_of
from tests.exporters.grouped_mlp import arrays
from tests.exporters.int8_networks import NETWORKS, network


def faulty(integers):
    """Copies of a file, one node of which reads another constant, each with what is wrong and the weight it belongs to."""
    constants = arrays(integers)
    for node in integers.graph:
        names = [value.name for value in node.inputs]
        if node.op_type != "DequantizeLinear" or "bias" in names[0]:
            continue
        weights, scale = names[0] in constants, constants[names[1]]
        channel = int(np.argmax(scale)) if scale.ndim else None
        axis = node.attributes.get_int("axis", 0)
        changes = [("scale of the layer, x 2", 1, lambda v: 2 * v)]
        if not weights:
            changes += [(f"zero point, + {shift}", 2, lambda v, s=shift: v + s) for shift in (10, 40)]
        if channel is not None:
            changes += [
                (f"scale of a channel, x {factor}", 1, lambda v, f=factor, c=channel: changed(v, 0, c, f))
                for factor in (0.5, 2)
            ]
            changes.append(("weights of a channel, 0", 0, lambda v, a=axis, c=channel: changed(v, a, c, 0)))
        for what, place, change in changes:
            copy, before = integers.clone(), constants[names[place]]
            wrong = ir.tensor(change(before).astype(before.dtype), name="wrong")
            copy.graph.register_initializer(ir.Value(name="wrong", const_value=wrong))
            copy.graph.node(node.name).replace_input_with(place, copy.graph.initializers["wrong"])
            yield what, names[0] if weights else "", copy


def changed(values, axis, channel, factor):
    values = np.moveaxis(values, axis, 0).copy()
    values[channel] = values[channel] * factor
    return np.ascontiguousarray(np.moveaxis(values, 0, axis))


def explained(want, have):
    """Share of the variance of each unit that the file leaves to it."""
    want, have = want.reshape(len(want), -1), have.reshape(len(have), -1)
    moves = want.std(axis=0) > 0.25 * np.median(want.std(axis=0))
    return 1 - ((have - want) ** 2).mean(axis=0)[moves] / want.var(axis=0)[moves]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fault_is_refused_or_harmless(name):
    net = network(name)
    healthy = compared(net.samples, values_of(net.integers, net.samples.held_out))
    assert not refusal(healthy) and all(agreement.error < 0.05 for agreement in healthy.values())
    refused = dict[str, list[bool]]()
    for what, _, model in faulty(net.integers):
        values = values_of(model, net.samples.held_out)
        reason = refusal(compared(net.samples, values))
        refused.setdefault(what, []).append(bool(reason))
        if not reason:
            for output, wanted in net.samples.wanted.items():
                want, have = wanted.table(wanted.values), wanted.table(values[output])
                assert explained(want, have).min() > 0.8 and ((want - have) ** 2).mean() < 0.03 * want.var(), what
    assert all(refused["scale of the layer, x 2"]) and all(refused["zero point, + 40"])
    assert sum(map(sum, refused.values())) > 0.75 * sum(map(len, refused.values()))


@pytest.mark.parametrize("output", ["embedding", "features"])
def test_an_output_beside_good_logits_is_named(output):
    net = network("heads")
    values = values_of(net.integers, net.samples.held_out)
    assert values.keys() == net.samples.wanted.keys() == {"logits", "embedding", "features"}
    values[output] = [-value for value in values[output]]
    found = compared(net.samples, values)
    assert refusal(found).startswith(f"output '{output}': its error is ")
    assert not found["logits"].refused and set(found) == set(values)
