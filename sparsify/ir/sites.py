"""Tables computed from the graph: which weights can be sparse, which are, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from sparsify.ir.nodes import (
    MASK_OPERATORS,
    BatchNormSite,
    Costs,
    MaskSite,
    RandomMaskSite,
    WeightSite,
    apply_random_mask,
    compact_view,
    masked_view,
)
from sparsify.ir.printer import target_name
from sparsify.ir.products import LOOKUPS, Macs, is_free, is_product
from sparsify.ir.state import find
from sparsify.ir.traits import argument, arguments, state_name, traits, written
from sparsify.ir.weight_reads import Reads, for_outputs, from_inputs, reads
from sparsify.parts.layouts import Layout

if TYPE_CHECKING:
    from sparsify.ir.program import Program

NAMED = 3
"""How many weights the message about a mostly dense model names."""


def first_names(parameters: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """Map every name of each parameter to its first name; tied tensors have several names.

    Args:
        parameters: every parameter by each of its names, in the order of ``named_parameters(remove_duplicate=False)``.
    """
    first: dict[int, str] = {}
    return {name: first.setdefault(id(parameter), name) for name, parameter in parameters.items()}


def parameter_names(program: Program) -> dict[str, str]:
    """Return `first_names` of a program."""
    return first_names(dict(program.named_parameters(remove_duplicate=False)))


def parameter_nodes(program: Program, phase: str) -> Iterator[tuple[fx.Node, str]]:
    """Yield every ``get_attr`` node of a parameter, with the parameter's canonical name (its first one where tied)."""
    names = parameter_names(program)
    for node in program.phases[phase].graph.nodes:
        if node.op == "get_attr" and node.target in names:
            yield node, names[node.target]


def weight_sites(program: Program) -> tuple[WeightSite, ...]:
    """Return all parameters of two dimensions or more, in the order of the train graph; those it does not read come last."""
    return _Weights(program).sites()


def mask_sites(program: Program) -> tuple[MaskSite, ...]:
    """Return all masked weights, in the order of the train graph; one for a tied or shared weight."""
    return _masked(program, weight_sites(program))


def clear_stray(program: Program) -> None:
    """Set inactive weights that are not 0 to 0, where a lowered mask of either phase reads them."""
    parameters = dict(program.named_parameters(remove_duplicate=False))
    pairs = {
        (state_name(node, "weight"), state_name(node, "mask"))
        for phase in program.phases.values()
        for node in phase.graph.nodes
        if node.target is masked_view
    }
    with torch.no_grad():
        for weight, mask in sorted(pairs):
            inactive = ~program.get_buffer(mask)
            if bool(((parameters[weight] != 0) & inactive).any()):
                parameters[weight].masked_fill_(inactive, 0.0)


def leading_phase(program: Program) -> str:
    """Return the phase that tables are made from: ``train``, or ``eval`` of a deployed program, which has no other."""
    return next(iter(program.phases))


def mask_names(program: Program) -> dict[str, str]:
    """Return names of the masks by weight, in the order of the train graph."""
    return {weight: mask for weight, (mask, _) in masks_and_patterns(program).items()}


def mask_of(program: Program, weight: str) -> Tensor:
    """The mask of a weight.

    Raises:
        AttributeError: If it has none; naming the weights that have one.
    """
    value = find(program, f"{weight}_mask")
    if isinstance(value, Tensor):
        return value
    known = ", ".join(mask_names(program))
    advice = f"Weights with a mask: {known}." if known else "No weight has one: apply insert-masks, or attach a method."
    raise AttributeError(f"program {program.name!r} has no mask of {weight!r}. {advice}")


def masks_and_patterns(program: Program) -> dict[str, tuple[str, str]]:
    """Return mask name and pattern spelling by weight, in the order of the train graph; unlike `mask_sites`, counts no MACs."""
    names, found = parameter_names(program), dict[str, tuple[str, str]]()
    for node in program.phases[leading_phase(program)].graph.nodes:
        if node.target in MASK_OPERATORS:
            weight = names[state_name(node, "weight")]
            found.setdefault(weight, (state_name(node, "mask"), argument(node, "pattern")))
    return found


def layouts(program: Program) -> dict[str, Layout]:
    """Return the layout of each weight that is stored compact, by name, in the order of the train graph."""
    views = [node for node in program.phases[leading_phase(program)].graph.nodes if node.target is compact_view]
    found, names = dict[str, Layout](), parameter_names(program) if views else {}
    for node in views:
        places = argument(node, "places")
        order = None if places is None else program.get_buffer(str(places.target)).argsort()
        shape = tuple(program.get_buffer(state_name(node, "mask")).shape)
        inputs = program.get_buffer(state_name(node, "inputs"))
        found.setdefault(names[state_name(node, "weight")], Layout(shape, inputs, order))
    return found


def positions_of(program: Program) -> dict[str, int]:
    """Return, by masked weight, how many outputs its products compute per sample and channel: pixels, tokens, uses; at least 1."""
    masked = masks_and_patterns(program)
    return {
        site.name: max(site.macs // math.prod(site.shape), 1) for site in weight_sites(program) if site.name in masked
    }


def parameter_count(program: Program) -> int:
    """Count the positions of all parameters, each tied tensor once; those of compact weights include the inactive ones."""
    stored = layouts(program)
    shapes = (stored[name].shape if name in stored else p.shape for name, p in program.named_parameters())
    return sum(map(math.prod, shapes))


def _masked(program: Program, sites: Iterable[WeightSite]) -> tuple[MaskSite, ...]:
    macs, masked = {site.name: site.macs for site in sites}, masks_and_patterns(program)
    return tuple(MaskSite(weight, mask, pattern, macs.get(weight, 0)) for weight, (mask, pattern) in masked.items())


def random_mask_sites(program: Program) -> tuple[RandomMaskSite, ...]:
    """Return all weights that the train phase reads through a random mask, in graph order; one for a tied or shared weight."""
    names = parameter_names(program)
    sites: dict[str, RandomMaskSite] = {}
    for node in program.phases[leading_phase(program)].graph.nodes:
        if node.target is apply_random_mask:
            given, visible = arguments(node), state_name(node, "visible")
            weight = names[visible.removesuffix("_visible")]
            sites.setdefault(weight, RandomMaskSite(weight, visible, float(given["rate"]), bool(given["rescale"])))
    return tuple(sites.values())


def batch_norm_sites(program: Program) -> tuple[BatchNormSite, ...]:
    """Running statistics that the train phase updates, in graph order; one for each pair of buffers."""
    sites: dict[str, BatchNormSite] = {}
    for node in program.phases[leading_phase(program)].graph.nodes:
        if traits(node).name == "batch_norm" and (statistics := list(written(node))):
            mean, variance = (str(value.target) for value in statistics)
            sites.setdefault(mean, BatchNormSite(mean, variance, float(argument(node, "momentum"))))
    return tuple(sites.values())


def costs(program: Program) -> Costs:
    """Return parameters (each tied tensor once), maskable and active weights, MACs per example."""
    weights = _Weights(program)
    counts = [(node, weights.macs.of(node)) for node in weights.products()]
    macs_dense = sum(count or 0 for _, count in counts)
    unknown = {target_name(node.target) for node in weights.unknown()}
    unknown |= {f"{target_name(node.target)} (a size is not known)" for node, count in counts if count is None}
    masks = [(site, program.get_buffer(site.mask)) for site in _masked(program, weights.sites())]
    active = [(site, int(mask.count_nonzero()), mask.numel()) for site, mask in masks]
    return Costs(
        params=parameter_count(program),
        maskable=sum(total for _, _, total in active),
        active=sum(count for _, count, _ in active),
        macs_dense=macs_dense,
        macs_active=macs_dense - sum(site.macs - site.macs * count // total for site, count, total in active),
        unknown=tuple(sorted(unknown)),
    )


def mostly_dense(program: Program) -> str | None:
    """Return a sentence on what stays dense and why, if less than half of a program's weights are masked or maskable; else None."""
    masks, sites = mask_names(program), weight_sites(program)
    dense = [site for site in sites if site.skip is not None and site.name not in masks]
    params = parameter_count(program)
    able = sum(math.prod(site.shape) for site in sites) - sum(math.prod(site.shape) for site in dense)
    if 2 * able >= params:
        return None
    largest = sorted(dense, key=lambda site: -math.prod(site.shape))[:NAMED]
    named = "; ".join(f"{site.name} ({math.prod(site.shape):,} weights: {site.skip})" for site in largest)
    return f"Only {able:,} of the model's {params:,} weights can be masked; the others stay dense" + (
        f", the largest of them {named}." if named else "."
    )


class _Weights:
    """Follows the weights of the train phase to its products, once for all tables."""

    def __init__(self, program: Program) -> None:
        self._program, self._module = program, program.phases[leading_phase(program)]
        self._live = from_inputs(self._module) & for_outputs(self._module)
        self.macs = Macs(program)
        self._shapes = {name: layout.shape for name, layout in layouts(program).items()}

    def products(self) -> Iterator[fx.Node]:
        """Yield the products that are computed for every example."""
        return (node for node in self._module.graph.nodes if node in self._live and is_product(node))

    def unknown(self) -> Iterator[fx.Node]:
        """Yield the nodes that run for every example and may multiply matrices, but are not counted."""
        nodes = (node for node in self._module.graph.nodes if node in self._live and not is_product(node))
        return (node for node in nodes if not is_free(node))

    def sites(self) -> tuple[WeightSite, ...]:
        nodes: dict[str, list[fx.Node]] = {}
        for node, name in parameter_nodes(self._program, leading_phase(self._program)):
            nodes.setdefault(name, []).append(node)
        for name, _ in self._program.named_parameters():
            nodes.setdefault(name, [])
        wide = {name: found for name, found in nodes.items() if self._program.get_parameter(name).ndim > 1}
        return tuple(self._site(name, found) for name, found in wide.items())

    def _site(self, name: str, nodes: list[fx.Node]) -> WeightSite:
        parameter, found = self._program.get_parameter(name), reads(self._module, nodes, self._live)
        shape, uses = self._shapes.get(name, tuple(parameter.shape)), found.products
        kinds = [use.kind for use in uses]
        kind = next((k for k in kinds if k not in LOOKUPS), kinds[0] if kinds else "none")
        groups = max((int(argument(use.user, "groups")) for use in uses if use.kind == "conv"), default=1)
        impossible = _impossible(parameter, found, nodes)
        skip = None
        if set(kinds) & set(LOOKUPS):
            skip = "an embedding table" if kind in LOOKUPS else "tied to an embedding table"
        elif kind == "conv" and groups > 1 and shape[1] == 1:
            skip = "a depthwise convolution"
        elif found.normalised:
            skip = "it is divided by the norm of each output, which a mask may make 0"
        elif any(product for _, product in found.changes):
            skip = "products also read other values that are computed from it"
        elif not parameter.requires_grad:
            skip = "frozen: it does not require a gradient"
        owners = [use.user for use in uses] or [user for node in nodes for user in node.users]
        return WeightSite(
            name=name,
            kind=kind,
            shape=shape,
            owner=str(owners[0].meta.get("owner", "")) if owners else "",
            macs=sum(round(use.share * self.macs.of_weight(use.user, use.value)) for use in uses),
            uses=len(uses),
            groups=groups,
            skip=impossible or skip,
            possible=impossible is None,
            direct=found.direct,
        )


def _impossible(parameter: nn.Parameter, found: Reads, nodes: list[fx.Node]) -> str | None:
    """Return why a mask on a parameter would not mask what a product multiplies, or None if it would."""
    if not any(node.users for node in nodes):
        return "nothing reads it in the train phase"
    if parameter.is_complex():
        return "its numbers are complex"
    if not parameter.is_floating_point():
        return f"its numbers are {str(parameter.dtype).removeprefix('torch.')}"
    if found.products:
        return None
    made = next((node for node, product in found.changes if product), None)
    if made is not None:
        return f"products read what {target_name(made.target)} computes from it, which is not zero where the weight is"
    reader = next(iter((*found.others, *(node for node, _ in found.changes))), None)
    return "no product of matrices reads it" + (f", but {target_name(reader.target)}" if reader is not None else "")
