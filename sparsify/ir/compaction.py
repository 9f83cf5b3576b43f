"""Compaction: weights with grouped masks are stored as their active positions only, and the graphs compute with those.

A compact weight keeps its `nn.Parameter`, its mask and its name; the parameter's memory is [O, k, *K] in place of [O, I, *K]. An optimizer
that holds the parameter thus holds the compact weight. Everything that is written to a file is dense: see `Program.state_dict`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from sparsify.ir import surgery
from sparsify.ir.compact import COMPACT_OPERATORS, ProductTap, compact_conv, compact_linear
from sparsify.ir.memory_order import is_free
from sparsify.ir.nodes import MASK_OPERATORS, PHASES, GradientTap, Stage, apply_random_mask, compact_view, masked_view
from sparsify.ir.sites import layouts, masks_and_patterns, parameter_names
from sparsify.ir.traits import argument, state_name
from sparsify.ir.weight_reads import is_tap
from sparsify.parts.compact_times import pays
from sparsify.parts.layouts import Layout, layout_of
from sparsify.parts.patterns import Grouped, parse_pattern

if TYPE_CHECKING:
    from sparsify.ir.program import Program

aten = torch.ops.aten
_LINEAR = aten.linear.default
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_BY_NAME = (aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
_NODES = ("input", "weight", "bias")
_DENSE_FORM = "dense_form"
"""The key of the metadata that restores the call of a rewritten node: a layer, a mask or a random mask."""


@dataclass(frozen=True)
class _Reader:
    """A layer that reads a masked weight.

    Attributes:
        shown: the node that applies the mask, or the random mask after it.
        tap: the tap between that node and the layer, or None.
        layer: the layer.
    """

    shown: fx.Node
    tap: fx.Node | None
    layer: fx.Node


def dense_weight(program: Program, name: str) -> Tensor:
    """Return a parameter, or a dense copy of it if it is stored compact."""
    weight = program.get_parameter(name)
    if weight.ndim < 2 or not surgery.has_state(program, f"{name}_inputs"):
        return weight
    found = layouts(program).get(name)
    return weight if found is None else found.scatter(weight.detach())


def obstacles(program: Program) -> dict[str, str]:
    """Return the masked weights that cannot be stored compact, whatever their masks, each with the reason."""
    found, views = dict[str, str](), _Views(program)
    for name, (_, spelling) in masks_and_patterns(program).items():
        if not isinstance(parse_pattern(spelling), Grouped):
            found[name] = f"its pattern is {spelling}, not grouped"
        elif (reason := next(filter(None, (_unread(views, phase, name) for phase in PHASES)), None)) is not None:
            found[name] = reason
    return found


def grouped_patterns(program: Program) -> dict[str, Grouped]:
    """Return the pattern of each weight with a grouped mask, fitted to its shape, in the order of the train graph."""
    found = dict[str, Grouped]()
    for name, (mask, spelling) in masks_and_patterns(program).items():
        pattern = parse_pattern(spelling)
        if isinstance(pattern, Grouped):
            found[name] = pattern.fitted(tuple(program.get_buffer(mask).shape))
    return found


def choose_layouts(
    program: Program, patterns: Mapping[str, Grouped], positions: Mapping[str, int] | None
) -> dict[str, Layout]:
    """Choose the weights to store compact; return the layout of each.

    Args:
        program: the program, whose masks decide.
        patterns: the weights to choose from, with their fitted patterns (`grouped_patterns`).
        positions: outputs that the products of each weight compute (`positions_of`), to choose only weights for which a training step is
            predicted to be faster; None chooses every weight whose mask has a layout.
    """
    chosen = dict[str, Layout]()
    for name, pattern in patterns.items():
        mask = program.mask(name)
        share = int(mask[0].count_nonzero()) / mask[0].numel()  # all outputs read the same share if there is a layout
        if share < 1 and (positions is None or pays(tuple(mask.shape), share, positions[name], pattern.rows)):
            layout = layout_of(mask, pattern)
            if layout is not None:
                chosen[name] = layout
    return chosen


class _Views:
    """The nodes that apply masks, by phase and weight, found once for all weights."""

    def __init__(self, program: Program) -> None:
        self.program, self.taps = program, program.taps()
        self._found: dict[tuple[str, str], list[fx.Node]] = {}
        for phase in program.phases:
            for node in program.phases[phase].graph.nodes:
                if node.op == "call_function" and node.target in MASK_OPERATORS:
                    name = state_name(node, "mask").removesuffix("_mask")
                    self._found.setdefault((phase, name), []).append(node)

    def of(self, phase: str, name: str) -> list[fx.Node]:
        return self._found.get((phase, name), [])

    def readers(self, phase: str, view: fx.Node) -> Iterator[_Reader]:
        for shown in (view, *_random_masks(view)):
            for user in shown.users:
                if is_tap(self.program.phases[phase], user):
                    yield from (_Reader(shown, user, layer) for layer in user.users)
                elif user.target is not apply_random_mask:
                    yield _Reader(shown, None, user)


def _random_masks(view: fx.Node) -> list[fx.Node]:
    """Return the random masks that follow a mask."""
    return [user for user in view.users if user.target is apply_random_mask]


def _unread(views: _Views, phase: str, name: str) -> str | None:
    """Return why the layers of a phase cannot read a weight compact, or None if they can."""
    for view in views.of(phase, name):
        if view.target is compact_view:
            return "it is stored compact already"
        readers = list(views.readers(phase, view))
        if not readers:
            return f"no layer reads it in {phase}"
        if (reason := next(filter(None, map(_unreadable, readers)), None)) is not None:
            return reason
    return None


def _unreadable(reader: _Reader) -> str | None:
    layer, source = reader.layer, reader.tap or reader.shown
    target = layer.target
    if target is not _LINEAR and target not in (*_CONVOLUTIONS, *_BY_NAME):
        return f"%{layer.name} reads it, which is neither a linear layer nor a convolution"
    if argument(layer, "weight") is not source or source in (argument(layer, "input"), argument(layer, "bias")):
        return f"%{layer.name} reads it other than as its weight"
    if target is not _LINEAR and int(argument(layer, "groups")) != 1:
        return "the convolution is grouped already"
    if target in _BY_NAME and _padding(layer) is None:
        return f"the padding of %{layer.name} differs between the two sides"
    return None


def compact(program: Program, chosen: Mapping[str, Layout]) -> None:
    """Store weights compact and let the graphs compute with them.

    Args:
        program: of stage MASKED; the values of inactive weights are lost.
        chosen: by name of weights without an obstacle (`obstacles`), the layout of the mask.
    """
    views = _Views(program)
    for name, layout in chosen.items():
        put_compact(program, name, layout, layout.gather(program.get_parameter(name).detach()))
        tap = _replace_tap(views, name, ProductTap)
        for phase in PHASES:
            for view in views.of(phase, name):
                readers = list(views.readers(phase, view))
                indices = [_index(program, phase, name, key, view) for key in ("inputs", "places")]
                given = [argument(view, key) for key in ("weight", "mask", "pattern")]
                surgery.set_aside(view, _DENSE_FORM, ("weight", "mask"))
                surgery.replace_target(view, compact_view)
                surgery.set_arguments(view, (*given, *indices))
                for node in _random_masks(view):
                    before = [argument(node, key) for key in ("weight", "visible", "rate", "rescale")]
                    surgery.set_aside(node, _DENSE_FORM, ("weight", "visible"))
                    surgery.set_arguments(node, (*before, *indices))
                for reader in readers:
                    _compact_layer(program, phase, view, reader, indices, tap)
    finish(program)


def _compact_layer(
    program: Program, phase: str, view: fx.Node, reader: _Reader, indices: list[fx.Node | None], tap: str | None
) -> None:
    layer = reader.layer
    source, bias = argument(layer, "input"), argument(layer, "bias")
    surgery.set_aside(layer, _DENSE_FORM, _NODES)
    given = (source, reader.shown, indices[0], bias, indices[1])
    options: tuple[Any, ...] = ()
    if layer.target is _LINEAR:
        surgery.replace_target(layer, compact_linear)
        options = (True,) if is_free(program.phases[phase], layer) else ()
    else:
        padding = _padding(layer) if layer.target in _BY_NAME else argument(layer, "padding")
        options = (_numbers(argument(layer, "stride")), _numbers(padding), _numbers(argument(layer, "dilation")))
        surgery.replace_target(layer, compact_conv)
    surgery.set_arguments(layer, (*given, *options))
    if reader.tap is not None and tap is not None:
        asked = () if layer.target is compact_linear else options
        made = surgery.call_after(program, phase, layer, tap, (layer, source, argument(view, "mask"), *asked))
        surgery.reroute(layer, made)
        if not reader.tap.users:
            surgery.erase(program, phase, reader.tap)


def expand(program: Program, names: Iterable[str] | None = None) -> None:
    """Store compact weights dense again, and let the graphs read them through masks.

    Args:
        program: the program.
        names: the compact weights to store dense; None means all of them, if there are any.
    """
    found = layouts(program) if program.stage is Stage.MASKED else {}
    chosen = [*found] if names is None else list(names)
    if not chosen:
        return
    views = _Views(program)
    for name in chosen:
        layout, weight = found[name], program.get_parameter(name)
        store(weight, layout.scatter(weight.detach()))
        tap = _replace_tap(views, name, GradientTap)
        for phase in PHASES:
            for view in views.of(phase, name):
                _expand_view(program, phase, view, tap)
        for key in ("inputs", "places"):
            if surgery.has_state(program, f"{name}_{key}"):
                surgery.remove_state(program, f"{name}_{key}")
    finish(program)


def _expand_view(program: Program, phase: str, view: fx.Node, tap: str | None) -> None:
    mask, indices = argument(view, "mask"), [argument(view, key) for key in ("inputs", "places")]
    shown_by = (view, *_random_masks(view))
    layers = [(shown, user) for shown in shown_by for user in shown.users if user.target in COMPACT_OPERATORS]
    surgery.restore(view, _DENSE_FORM, {"weight": argument(view, "weight"), "mask": mask})
    view.meta["spec"] = view.meta["spec"].of_shape(program.get_buffer(str(mask.target)).shape)
    for node in _random_masks(view):
        surgery.restore(node, _DENSE_FORM, {"weight": view, "visible": argument(node, "visible")})
        node.meta["spec"] = node.meta["spec"].of_shape(view.meta["spec"].shape)
    sources = {shown: shown for shown, _ in layers}
    if tap is not None and any(is_tap(program.phases[phase], user) for _, layer in layers for user in layer.users):
        masking = view.target is masked_view and argument(view, "gradient") == "tapped"
        for shown in sources:
            sources[shown] = surgery.call_after(program, phase, shown, tap, (shown, mask) if masking else (shown,))
    for shown, layer in layers:
        values, bias, source = argument(layer, "input"), argument(layer, "bias"), sources[shown]
        for user in [user for user in layer.users if is_tap(program.phases[phase], user)]:
            surgery.bypass(program, phase, user, layer)
        surgery.restore(layer, _DENSE_FORM, {"input": values, "weight": source, "bias": bias})
    for index in indices:
        if index is not None and not index.users:
            surgery.erase(program, phase, index)


def finish(program: Program) -> None:
    """Note the new shapes and recompile the graphs, after weights changed between dense and compact."""
    note_shapes(program)
    surgery.finish(program)


def stored_dense(program: Program) -> Program:
    """Return the program itself, or a clone with dense weights if it stores some compact."""
    return program.clone() if program.stage is Stage.MASKED and layouts(program) else program


def relayout(program: Program, name: str, layout: Layout, dense: Tensor) -> None:
    """Give a compact weight the active values of ``dense`` [O, I, *K] in another layout; call `note_shapes` afterwards."""
    put_compact(program, name, layout, layout.gather(dense))


def store(parameter: Tensor, values: Tensor) -> None:
    """Give a parameter new values of any shape; its gradient is dropped if the shape changes.

    A graph of an earlier loss that is still alive keeps a node that expects gradients of the old shape. torch makes a new node only if
    the dtype changes, so the dtype changes for a moment.
    """
    if parameter.shape == values.shape:
        parameter.data = values
        return
    parameter.grad = None
    other = torch.float16 if values.dtype is not torch.float16 else torch.float32
    parameter.data = values.new_empty(0, dtype=other)
    parameter.data = values


def put_compact(program: Program, name: str, layout: Layout, values: Tensor) -> None:
    """Give a compact weight the values [O, k, *K] of a layout, and that layout; its gradient is dropped if its shape changes."""
    store(program.get_parameter(name), values)
    surgery.add_state(program, f"{name}_inputs", layout.inputs, persistent=False)
    if layout.order is not None:
        surgery.add_state(program, f"{name}_places", layout.order.argsort(), persistent=False)


def _index(program: Program, phase: str, name: str, key: str, view: fx.Node) -> fx.Node | None:
    if not surgery.has_state(program, f"{name}_{key}"):
        return None
    return surgery.state_node(program, phase, f"{name}_{key}", before=view)


def note_shapes(program: Program) -> None:
    """Write the current shapes of weights and their indices into the specs of the nodes that read them."""
    for phase in program.phases.values():
        for node in phase.graph.nodes:
            if node.target is apply_random_mask:
                node.meta["spec"] = node.meta["spec"].of_shape(argument(node, "weight").meta["spec"].shape)
                continue
            source = argument(node, "weight") if node.target in MASK_OPERATORS else node
            if source.op == "get_attr":
                value = program.tensor(str(source.target))
                if node.meta["spec"].shape != tuple(value.shape):
                    node.meta["spec"] = surgery.spec_of(value, node.name)


def _replace_tap(views: _Views, name: str, kind: type[GradientTap]) -> str | None:
    """Replace a weight's tap by one of another kind; return the name of the tap, or None if the weight has none."""
    program, old = views.program, views.taps.get(name)
    if old is None:
        return None
    tap = kind()
    tap.armed = old.armed
    surgery.add_state(program, f"{name}_tap", tap)
    return f"{name}_tap"


def _padding(layer: fx.Node) -> list[int] | None:
    """Return ``same`` or ``valid`` as numbers; None if they differ between the two sides."""
    kernel = argument(layer, "weight").meta["spec"].shape[2:]
    if argument(layer, "padding") == "valid":
        return [0] * len(kernel)
    dilation = _numbers(argument(layer, "dilation"))
    dilation = dilation * len(kernel) if len(dilation) == 1 else dilation
    totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return None if any(total % 2 for total in totals) else [total // 2 for total in totals]


def _numbers(value: Any) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def made_dense(program: Program, state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Replace the compact weights in a state dict by dense ones, under every name that they have, and return the dict."""
    found, names = layouts(program), parameter_names(program)
    for name in names if found else ():
        key = f"{prefix}{name}"
        if names[name] in found and key in state:
            state[key] = found[names[name]].scatter(state[key])
    return state


def make_room(program: Program, state: Mapping[str, Any]) -> dict[str, Any]:
    """Prepare compact weights for a state dict of dense ones: they get the layouts of its masks, or become dense if a mask has none.

    Returns:
        The state dict, with the values of compact weights in their layouts.
    """
    found, names, fitted = layouts(program), parameter_names(program), dict(state)
    patterns = grouped_patterns(program) if found else {}
    for name, layout in found.items():
        keys = [key for key in names if names[key] == name and key in state]
        dense, mask = state.get(next(iter(keys), "")), state.get(f"{name}_mask", program.mask(name))
        if not isinstance(dense, Tensor) or dense.shape != layout.shape or mask.shape != layout.shape:
            continue  # torch names what does not fit
        weight = program.get_parameter(name)
        new = layout_of(mask.to(weight.device), patterns[name])
        if new is None:
            expand(program, [name])
            continue
        relayout(program, name, new, dense.to(weight.device, weight.dtype))
        fitted |= dict.fromkeys(keys, weight.detach().clone())
    if found:
        note_shapes(program)
    return fitted
