"""Tables computed from the graph: which weights can be sparse, which are, and what they cost."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from sparsify.ir.nodes import (
    MASK_OPERATORS,
    BatchNormSite,
    Costs,
    GradientTap,
    MaskSite,
    RandomMaskSite,
    TensorSpec,
    WeightSite,
    apply_random_mask,
)
from sparsify.ir.program import Program

aten = torch.ops.aten

_CONV = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default)
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_MATMUL = (
    aten.matmul.default,
    aten.mm.default,
    aten.bmm.default,
    aten.addmm.default,
    aten.einsum.default,
    operator.matmul,
)
_EMBEDDING = (aten.embedding.default,)
_VIEWS = (
    aten.t.default,
    aten.transpose.int,
    aten.permute.default,
    aten.numpy_T.default,
    aten.to.dtype,
    aten.contiguous.default,
    aten.alias.default,
    *MASK_OPERATORS,
    apply_random_mask,
)
_PADDED = (aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)


def is_tap(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node calls a `GradientTap`."""
    return node.op == "call_module" and isinstance(graph_module.get_submodule(str(node.target)), GradientTap)


def first_names(parameters: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """The first name of each parameter, by each of its names: tied tensors have several.

    Args:
        parameters: every parameter by each of its names, in the order of ``named_parameters(remove_duplicate=False)``.
    """
    first: dict[int, str] = {}
    return {name: first.setdefault(id(parameter), name) for name, parameter in parameters.items()}


def parameter_names(program: Program) -> dict[str, str]:
    """`first_names` of a program."""
    return first_names(dict(program.named_parameters(remove_duplicate=False)))


def parameter_nodes(program: Program, phase: str) -> Iterator[tuple[fx.Node, str]]:
    """Every ``get_attr`` node of a parameter, with the parameter's canonical name (its first one where tied)."""
    names = parameter_names(program)
    for node in program.phases[phase].graph.nodes:
        if node.op == "get_attr" and node.target in names:
            yield node, names[node.target]


def consumers(module: fx.GraphModule, node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(consumer, the value it reads) of a weight, looked up through masks, taps and views."""
    for user in node.users:
        if user.target in _VIEWS or is_tap(module, user):
            yield from consumers(module, user)
        else:
            yield user, node


def gradient_is_private(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether every consumer of a weight's value is a product, whose backward makes the gradient for that value alone."""
    return all(_kind(user, value) is not None for user, value in consumers(module, node))


def weight_sites(program: Program) -> tuple[WeightSite, ...]:
    """All weights that take part in a matrix product, in the order of the train graph."""
    module = program.phases["train"]
    found: dict[str, list[tuple[str, fx.Node]]] = {}
    for node, name in parameter_nodes(program, "train"):
        if program.get_parameter(name).ndim < 2:
            continue
        uses = [(kind, user) for user, value in consumers(module, node) if (kind := _kind(user, value))]
        if uses:
            found.setdefault(name, []).extend(uses)
    return tuple(_site(program, name, uses) for name, uses in found.items())


def mask_sites(program: Program) -> tuple[MaskSite, ...]:
    """All masked weights, in the order of the train graph; one for a tied or shared weight."""
    return _masked(program, weight_sites(program))


def mask_names(program: Program) -> dict[str, str]:
    """Names of the masks by weight, in the order of the train graph."""
    names, found = parameter_names(program), dict[str, str]()
    for node in program.phases["train"].graph.nodes:
        if node.target in MASK_OPERATORS:
            found.setdefault(names[node.args[0].target], node.args[1].target)
    return found


def _masked(program: Program, sites: Iterable[WeightSite]) -> tuple[MaskSite, ...]:
    macs, names = {site.name: site.macs for site in sites}, parameter_names(program)
    found: dict[str, MaskSite] = {}
    for node in program.phases["train"].graph.nodes:
        if node.target in MASK_OPERATORS:
            weight = names[node.args[0].target]
            found.setdefault(weight, MaskSite(weight, node.args[1].target, node.args[2], macs.get(weight, 0)))
    return tuple(found.values())


def random_mask_sites(program: Program) -> tuple[RandomMaskSite, ...]:
    """All weights that the train phase reads through a random mask, in graph order; one for a tied or shared weight."""
    names = parameter_names(program)
    sites: dict[str, RandomMaskSite] = {}
    for node in program.phases["train"].graph.nodes:
        if node.target is apply_random_mask:
            visible, rate, rescale = str(node.args[1].target), float(node.args[2]), bool(node.args[3])
            weight = names[visible.removesuffix("_visible")]
            sites.setdefault(weight, RandomMaskSite(weight, visible, rate, rescale))
    return tuple(sites.values())


def batch_norm_sites(program: Program) -> tuple[BatchNormSite, ...]:
    """Running statistics that the train phase updates, in graph order; one for each pair of buffers."""
    sites: dict[str, BatchNormSite] = {}
    for node in program.phases["train"].graph.nodes:
        if node.target is aten.batch_norm.default and node.args[3] is not None and node.args[5]:
            mean, variance = str(node.args[3].target), str(node.args[4].target)
            sites.setdefault(mean, BatchNormSite(mean, variance, float(node.args[6])))
    return tuple(sites.values())


def costs(program: Program) -> Costs:
    """Parameters (each tied tensor once), maskable and active weights, MACs per example."""
    sites = weight_sites(program)
    macs_dense = sum(site.macs for site in sites)
    masks = [(site, program.get_buffer(site.mask)) for site in _masked(program, sites)]
    active = [(site, int(mask.count_nonzero()), mask.numel()) for site, mask in masks]
    return Costs(
        params=sum(parameter.numel() for parameter in program.parameters()),
        maskable=sum(total for _, _, total in active),
        active=sum(count for _, count, _ in active),
        macs_dense=macs_dense,
        macs_active=macs_dense - sum(site.macs - site.macs * count // total for site, count, total in active),
    )


def _kind(user: fx.Node, value: fx.Node) -> str | None:
    position = next((i for i, argument in enumerate(user.args) if argument is value), None)
    if user.target is aten.linear.default and position == 1:
        return "linear"
    if user.target in (*_CONV, *_PADDED) and position == 1:
        return "conv"
    if user.target in _TRANSPOSED and position == 1:
        return "conv-transpose"
    if user.target in _MATMUL:
        return "matmul"
    if user.target in _EMBEDDING and position == 0:
        return "embedding"
    return None


def _site(program: Program, name: str, uses: list[tuple[str, fx.Node]]) -> WeightSite:
    shape = tuple(program.get_parameter(name).shape)
    kinds = [kind for kind, _ in uses]
    kind = next((k for k in kinds if k != "embedding"), "embedding")
    groups = max((_groups(user) for k, user in uses if k == "conv"), default=1)
    skip = None
    if "embedding" in kinds:
        skip = "an embedding table" if kind == "embedding" else "tied to an embedding table"
    elif kind == "conv" and groups > 1 and shape[1] == 1:
        skip = "a depthwise convolution"
    elif kind == "conv-transpose":
        skip = "a transposed convolution"
    return WeightSite(
        name=name,
        kind=kind,
        shape=shape,
        owner=str(uses[0][1].meta.get("owner", "")),
        macs=sum(_macs(program, k, user, shape) for k, user in uses),
        uses=len(uses),
        groups=groups,
        skip=skip,
    )


def _groups(user: fx.Node) -> int:
    index = 8 if user.target is aten.convolution.default else 6
    value: Any = user.args[index] if len(user.args) > index else user.kwargs.get("groups", 1)
    return int(value)


def _macs(program: Program, kind: str, user: fx.Node, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates per example of one use of a weight: each output value costs what it reads of the weight."""
    spec = user.meta.get("spec")
    if kind == "embedding" or not isinstance(spec, TensorSpec):
        return 0
    if kind == "conv-transpose":  # each input value is multiplied by the kernels of all outputs of its group
        source = user.args[0].meta.get("spec") if isinstance(user.args[0], fx.Node) else None
        return _numel(program, source) * math.prod(shape[1:]) if isinstance(source, TensorSpec) else 0
    if kind == "matmul":
        return _numel(program, spec) * (shape[-2] if spec.shape[-1] == shape[-1] else shape[-1])
    return _numel(program, spec) * math.prod(shape[1:])


def _numel(program: Program, spec: TensorSpec) -> int:
    """Values per example, wherever the batch stands: the second of ``f32[8, 2*N, 16]`` counts 2."""
    total = math.prod(size if isinstance(size, int) else _multiple(size) for size in spec.shape)
    if program.dynamic_batch:
        return total
    batch = next((size for first in program.input_specs if first.shape and isinstance(size := first.shape[0], int)), 1)
    return max(total // batch, 1)


def _multiple(size: str) -> int:
    """The factor of the batch in ``"2*N"`` or ``"N"``; 1 for sizes of another form."""
    match = re.fullmatch(r"(\d+)\*N\d*", size)
    return int(match[1]) if match else 1
