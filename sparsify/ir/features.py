"""Features: the inputs of the classifier, the last layer. Logits are ``features @ weight.T + bias``, which is checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.errors import PassError
from sparsify.ir import surgery
from sparsify.ir.axes import shape_of
from sparsify.ir.classifier import classifier, replayed
from sparsify.ir.copying import viewed
from sparsify.ir.evaluation import outputs_over
from sparsify.ir.layers import Layer
from sparsify.ir.nodes import TensorSpec
from sparsify.ir.program import Program
from sparsify.ir.traits import apply
from sparsify.parts.samples import Samples, Subset


@dataclass(frozen=True)
class LastLayer:
    """The classifier as it computes in eval mode, with masks applied.

    Attributes:
        name: name of the parameter of its weight.
        weight: [K, d], detached; the weight of a convolution over all positions of its input is flattened.
        bias: [K], detached; zeros for a layer without one.
        node: name of the node of the layer in the eval phase.
    """

    name: str
    weight: Tensor
    bias: Tensor
    node: str


def classifier_of(program: Program) -> LastLayer:
    """Return weight and bias of the layer that the logits of the eval phase come from.

    Raises:
        PassError: If the program has no classifier; the message says why.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> import sparsify as sp
        >>> from sparsify.ir.features import classifier_of
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> last = classifier_of(sp.trace(model, torch.rand(2, 4)))
        >>> last.name, tuple(last.weight.shape), tuple(last.bias.shape)
        ('2.weight', (2, 3), (2,))
    """
    found = classifier(program, "eval")
    with torch.no_grad():
        dense = program.weight(found.weight)  # a copy if it is stored compact
        compact = dense is not program.tensor(found.weight)
        weight = (dense if compact else _value(program, found.layer.weight)).flatten(1).detach()
        bias = weight.new_zeros(len(weight)) if found.layer.bias is None else _value(program, found.layer.bias).detach()
    return LastLayer(found.weight, weight, bias, found.layer.node.name)


def features_over(program: Program, samples: Samples, *, batch_size: int = 256) -> Tensor:
    """Compute the features of samples in eval mode: what the classifier reads, after pooling if logits are pooled.

    The program does not change; it runs in batches.

    Args:
        program: in any mode, with logits [N, K].
        samples: N samples with inputs for the program.
        batch_size: samples per forward pass, at least 1.

    Returns:
        [N, d] on the CPU, in the dtype of the program, with ``logits = features @ weight.T + bias`` for the weight [K, d] and bias [K] of
        `classifier_of`.

    Raises:
        PassError: If the program has no classifier, or its logits are not linear in the inputs of the classifier.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> import sparsify as sp
        >>> from sparsify.ir.features import features_over
        >>> from sparsify.parts.samples import TensorSamples
        >>> program = sp.trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(2, 4))
        >>> features_over(program, TensorSamples(torch.rand(5, 4), torch.zeros(5).long())).shape
        torch.Size([5, 3])
    """
    view, name = with_features(program)
    found = outputs_over(view, samples, names=("logits", name), batch_size=batch_size)
    last, features, logits = classifier_of(view), found[name], found["logits"]
    made = features.double() @ last.weight.double().cpu().T + last.bias.double().cpu()
    allowed = 1e3 * torch.finfo(logits.dtype).eps * max(1.0, float(logits.abs().max()))
    if not (worst := float((made - logits.double()).abs().max())) <= allowed:
        raise PassError(
            f"expected logits that are linear in the inputs of %{last.node}, found a difference of {worst:.3g}: the model computes "
            f"something else between this layer and the logits of {program.name!r}, such as an activation or a max pool. Let its last "
            f"layer make the logits, after any activation and max pool."
        )
    return features


def check_features(program: Program, samples: Samples) -> None:
    """Refuse a program whose logits are not linear in the inputs of its classifier, whatever values the classifier gets in training.

    Args:
        program: in any mode; it does not change.
        samples: with inputs for the program; two are read, or as many as its fixed batch has.

    Raises:
        PassError: If it has no classifier, or its logits are not linear.
    """
    copy = program.clone()
    found, generator = classifier(copy, "eval"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in (found.weight, found.bias):
            if name is not None:
                value = copy.tensor(name)
                value.copy_(torch.randn(value.shape, generator=generator))
    count = min(2 if copy.dynamic_batch else int(copy.input_specs[0].shape[0]), len(samples))
    features_over(copy, Subset(samples, torch.arange(count)))


def with_features(program: Program) -> tuple[Program, str]:
    """Return a program whose eval phase also returns the features [N, d], and the name of that output.

    It has no train phase and shares parameters and buffers with ``program``: it computes with their present values, as long as no pass
    rewrites the graphs of ``program``.

    Raises:
        PassError: If the program has no classifier, or the layer reads more than one position of its input and pads or pools them.
    """
    view = viewed(program, "eval")
    value = features_node(view)
    taken = view.output_names("eval")
    name = next(n for i in range(len(taken) + 1) if (n := f"features_{i}" if i else "features") not in taken)
    surgery.append_output(view, "eval", name, value)
    surgery.finish(view)
    return view, name


def features_node(program: Program) -> fx.Node:
    """Return a node of the eval phase that computes the features [N, d]: what the classifier reads, pooled if logits are pooled.

    The node is added where no node of the program computes them.

    Raises:
        PassError: If the program has no classifier, or the layer reads more than one position of its input and pads or pools them.
    """
    found = classifier(program, "eval")
    layer, shape = found.layer, shape_of(found.layer.input)
    if layer.is_conv and _covers(layer):
        spec = TensorSpec("", (shape[0], math.prod(int(size) for size in shape[1:])), found.logits.meta["spec"].dtype)
        flatten = torch.ops.aten.flatten.using_ints
        return surgery.call_after(program, "eval", layer.input, flatten, (layer.input, 1), spec=spec)
    if layer.is_conv and (set(layer.kernel) | set(layer.spatial("stride")) != {1} or any(layer.pads)):
        raise PassError(
            f"the features of {program.name!r} are not defined: its classifier, %{layer.node.name}, is a convolution over several "
            f"positions, at each of which it reads other inputs. Pool before a linear layer, or use a kernel of size 1."
        )
    return replayed(program, "eval", found, layer.input, int(shape[layer.axis]))


def _covers(layer: Layer) -> bool:
    """Return whether a convolution reads all positions of its input at once, as a linear layer of the flattened input does."""
    return (
        tuple(shape_of(layer.input)[2:]) == layer.kernel
        and not any(layer.pads)
        and set(layer.spatial("dilation")) == {1}
    )


def _value(program: Program, node: fx.Node) -> Any:
    """Compute a node that reads only parameters and buffers."""
    if node.op == "get_attr":
        return program.tensor(str(node.target))
    return apply(node, lambda source: _value(program, source))
