"""``lower-grouped-linear`` and ``lower-grouped-conv``: turn grouped zeros into small dense layers, each reading a selection of inputs."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from sparsify.deployment.linear_times import Use
from sparsify.deployment.packing import Packing, best_packing
from sparsify.errors import PassError
from sparsify.ir import Program, Stage, TensorSpec, surgery
from sparsify.ir.dimensions import BATCH, mentions
from sparsify.ir.feature_major import FeatureMajor, can_turn, feature_shape, kept_by, sizes
from sparsify.ir.grouped_linear import GROUPED_LINEAR
from sparsify.ir.layers import reads_of
from sparsify.ir.traits import argument, traits
from sparsify.passes.base import DEPLOYED, Effect, Kept, Pass, PassLog
from sparsify.passes.in_place import make_functional
from sparsify.passes.linear_uses import SIZES_HELP, check_sizes, paying, sizes_of, use_of
from sparsify.passes.options import option

aten = torch.ops.aten
FORMS = ("auto", "grouped")
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
"""Names of the operators that the pass rewrites, for every spelling of padding."""


@dataclass(frozen=True)
class LowerGroupedConv(Pass):
    """Rewrite a convolution whose groups of outputs read few input channels as a selection of channels and a grouped convolution.

    A selection that is the identity is left out. The number of kept channels is rounded up to a multiple of 16, because runtimes only use
    their fast blocked layouts for such numbers.

    Raises:
        PassError: If the form is unknown or a glob matches no weight.
    """

    name: ClassVar = "lower-grouped-conv"
    requires: ClassVar = (Stage.DEPLOYED,)
    effects: ClassVar = Effect.EVAL_GRAPH | Effect.NAMES | Effect.WEIGHTS

    form: str = option(
        "auto", "auto: where a cost model predicts a gain; grouped: wherever inputs can be left out", choices=FORMS
    )
    keep_dense: tuple[str, ...] = option((), "globs of weights to leave as they are")

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return DEPLOYED

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        for node, weight in _layers(program, CONVOLUTIONS, self, log):
            if argument(node, "groups") != 1:
                log.skip(str(weight.target), "a grouped convolution already")
            elif packing := _packing(program, weight, self, log):
                self._lower(program, node, weight, packing)
                log.change(str(weight.target))
        if log.changed:
            surgery.erase_dead(program, "eval")
        return log

    def _lower(self, program: Program, node: fx.Node, weight: fx.Node, packing: Packing) -> None:
        source = argument(node, "input")
        dense = program.get_parameter(str(weight.target))
        inputs = dense.shape[1]
        _replace(program, weight, packing.values(dense).flatten(0, 1))
        if not packing.is_identity(inputs):
            source = _every_step(program, node, source, dense)
            index = _index(program, weight, node, packing.inputs.flatten())
            spec = surgery.respec(source, 1, packing.inputs.numel())
            taken = surgery.call_after(program, "eval", index, aten.index_select.default, (source, 1, index), spec=spec)
            surgery.set_argument(node, "input", taken)
        surgery.set_argument(node, "groups", packing.groups)


@dataclass(frozen=True)
class LowerGroupedLinear(Pass):
    """Rewrite a linear layer as a batched product of small matrices, one per group, over selected rows of feature-major values.

    The new operator is ``sparsify.grouped_linear``. Over tokens, whose number may vary, it is a selection and a grouped convolution of
    width 1. Values stay feature-major through elementwise operators, residual additions, layer norms and dense layers in between, so that
    transposes are only needed at the ends of a chain of layers. The cost model compares what a layer saves, for the rows that it computes
    (batch times tokens), with the cost of the transposes.

    Raises:
        PassError: If the form is unknown, a glob matches no weight, or a size is of no dimension that varies.
    """

    name: ClassVar = "lower-grouped-linear"
    requires: ClassVar = (Stage.DEPLOYED,)
    effects: ClassVar = Effect.EVAL_GRAPH | Effect.NAMES | Effect.WEIGHTS

    form: str = option(
        "auto", "auto: where a cost model predicts a gain; grouped: wherever inputs can be left out", choices=FORMS
    )
    keep_dense: tuple[str, ...] = option((), "globs of weights to leave as they are")
    sizes: tuple[str, ...] = option((), SIZES_HELP, reads=check_sizes)
    picks: bool = option(True, "one sample's inputs are selected by an operator of its own, as export does by batch")

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return DEPLOYED

    def run(self, program: Program) -> PassLog:
        log, sizes = PassLog(self.name), sizes_of(program, self.sizes)
        packings: dict[fx.Node, tuple[fx.Node, Packing]] = {}
        uses: dict[fx.Node, Use] = {}
        for node, weight in _layers(program, ("linear",), self, log):
            use = use_of(program, node, sizes, picks=self.picks)
            if not (can_turn(node) and can_turn(argument(node, "input"))):
                if names := _varying(program, node):
                    log.skip(str(weight.target), f"the size {' and '.join(names)} of its input varies")
            elif packing := _packing(program, weight, self, log, use):
                packings[node] = weight, packing
                uses |= {} if use is None else {node: use}
        if self.form == "auto":
            packings = _paying(program, packings, uses, log)
        if not packings:
            return log
        make_functional(program, "eval")
        columns = FeatureMajor(program, "eval")
        for node in list(program.phases["eval"].graph.nodes):
            if node in packings:
                weight, packing = packings[node]
                self._lower(program, node, weight, packing, columns)
                log.change(str(weight.target))
            elif kept_by(node, columns.twins) == "linear":
                self._lower_dense(node, columns)
            else:
                columns.follow(node)
        columns.finish()
        return log

    def _lower(self, program: Program, node: fx.Node, weight: fx.Node, packing: Packing, columns: FeatureMajor) -> None:
        values, tokens = packing.values(program.get_parameter(str(weight.target))), len(feature_shape(node)) > 2
        if tokens:
            source, last = _selected(program, node, weight, packing, columns)
            _replace(program, weight, values.flatten(0, 1).unsqueeze(-1))
            columns.lowered(node, _convolution(node, weight, source, packing.groups, columns, last))
            return
        inputs = None
        if not packing.is_identity(program.get_parameter(str(weight.target)).shape[1]):
            index = packing.inputs[:, :: packing.chunk] // packing.chunk
            inputs = _index(program, weight, node, index[0] if packing.groups == 1 else index)
        _replace(program, weight, values[0] if packing.groups == 1 else values)
        columns.lowered(node, _product(node, weight, inputs, packing.chunk, columns))

    def _lower_dense(self, node: fx.Node, columns: FeatureMajor) -> None:
        """Make a dense layer that reads a feature-major value compute in that form as well."""
        made = _tokens if len(feature_shape(node)) > 2 else functools.partial(_product, inputs=None, chunk=1)
        columns.lowered(node, made(node, argument(node, "weight"), columns=columns))


def _varying(program: Program, node: fx.Node) -> list[str]:
    """Return the varying dimensions of a layer's output, except the first and those of the batch."""
    spec = node.meta.get("spec")
    shape = spec.shape[1:] if isinstance(spec, TensorSpec) else ()
    return [name for name in program.sizes if name != BATCH and any(mentions(size, name) for size in shape)]


def _every_step(program: Program, node: fx.Node, source: fx.Node, weight: Tensor) -> fx.Node:
    """Subsample the input of a strided 1 x 1 convolution before the selection, and set its stride to 1; returns the new input."""
    stride, padding = argument(node, "stride"), argument(node, "padding")
    spec, made = source.meta.get("spec"), node.meta.get("spec")
    padded = padding == "same" or (padding != "valid" and any(padding))
    if weight.ndim != 4 or weight.shape[2:].numel() > 1 or max(stride) == 1 or padded:
        return source
    if not isinstance(spec, TensorSpec) or not isinstance(made, TensorSpec):
        return source
    shape = TensorSpec("", (*spec.shape[:2], *made.shape[2:]), spec.dtype)
    anchor = node.prev if node.prev.op != "placeholder" else source
    taken = surgery.call_after(
        program, "eval", anchor, aten.max_pool2d.default, (source, [1, 1], list(stride)), spec=shape
    )
    surgery.set_argument(node, "stride", [1, 1])
    return taken


def _selected(
    program: Program, node: fx.Node, weight: fx.Node, packing: Packing, columns: FeatureMajor
) -> tuple[fx.Node, fx.Node]:
    """Select the inputs that the groups read of tokens, [N, G * K, S]; returns that node and the node after which readers go."""
    source, last = columns.of(argument(node, "input")), node
    batch, features, width = feature_shape(argument(node, "input"))
    if packing.is_identity(int(features)):
        return source, last
    chunk = packing.chunk if isinstance(width, int) else 1  # a reshape can infer only one size, and that is the batch
    line = width if chunk == 1 else chunk * int(width)
    if chunk > 1:  # rows of a chunk are adjacent, so a chunk is one contiguous copy
        shape = (batch, int(features) // chunk, line)
        source = last = columns.emit(last, aten.reshape.default, (source, sizes(shape)), shape)
    index = _index(program, weight, node, packing.inputs.flatten()[::chunk] // chunk)
    shape = (batch, packing.inputs.numel() // chunk, line)
    source = last = columns.emit(last, aten.index_select.default, (source, 1, index), shape)
    if chunk > 1:
        shape = (batch, packing.inputs.numel(), width)
        source = last = columns.emit(last, aten.reshape.default, (source, sizes(shape)), shape)
    return source, last


def _convolution(
    node: fx.Node, weight: fx.Node, source: fx.Node, groups: int, columns: FeatureMajor, last: fx.Node
) -> fx.Node:
    """Make a grouped convolution of width 1 over tokens; runtimes fuse the bias into the product of each group."""
    given = (source, weight, argument(node, "bias"), [1], [0], [1], groups)
    return columns.emit(last, aten.conv1d.default, given, feature_shape(node))


def _tokens(node: fx.Node, weight: fx.Node, columns: FeatureMajor) -> fx.Node:
    """Make a dense layer over tokens."""
    bias, shape = argument(node, "bias"), feature_shape(node)
    product = columns.emit(node, aten.matmul.default, (weight, columns.of(argument(node, "input"))), shape)
    if not isinstance(bias, fx.Node):
        return product
    column = columns.emit(product, aten.unsqueeze.default, (bias, 1), (shape[-2], 1))
    return columns.emit(column, aten.add.Tensor, (product, column), shape)


def _product(node: fx.Node, weight: fx.Node, inputs: fx.Node | None, chunk: int, columns: FeatureMajor) -> fx.Node:
    source = columns.of(argument(node, "input"))
    given = (source, weight, inputs, argument(node, "bias"), chunk)
    return columns.emit(node, GROUPED_LINEAR, given, feature_shape(node))


def _layers(
    program: Program, operators: tuple[str, ...], settings: LowerGroupedConv | LowerGroupedLinear, log: PassLog
) -> list[tuple[fx.Node, fx.Node]]:
    """Return (layer, node of its weight) of the eval phase, for weights that only one layer reads."""
    names = [name for name, parameter in program.named_parameters() if parameter.ndim > 1]
    for glob in settings.keep_dense:
        if not any(fnmatch.fnmatchcase(name, glob) for name in names):
            raise PassError(f"{settings.name}: keep-dense={glob!r} matches no weight. Weights: {', '.join(names)}.")
    tensors, reads = dict(program.named_parameters(remove_duplicate=False)), reads_of(program)
    found: list[tuple[fx.Node, fx.Node]] = []
    for node in program.phases["eval"].graph.nodes:
        weight = argument(node, "weight") if traits(node).name in operators else None
        if not isinstance(weight, fx.Node) or str(weight.target) not in tensors:
            continue
        name = str(weight.target)
        if any(fnmatch.fnmatchcase(name, glob) for glob in settings.keep_dense):
            log.skip(name, "asked to stay dense")
        elif reads[name] > 1:
            log.skip(name, "more than one layer reads it")
        else:
            found.append((node, weight))
    return found


def _paying(
    program: Program, packings: dict[fx.Node, tuple[fx.Node, Packing]], uses: Mapping[fx.Node, Use], log: PassLog
) -> dict[fx.Node, tuple[fx.Node, Packing]]:
    """The layers that are predicted to be faster together with the transposes that they need."""
    found, slower = paying(program, {node: packing for node, (_, packing) in packings.items()}, uses)
    for node, gain in slower.items():
        rows = uses[node].rows if node in uses else 1
        log.skip(
            str(packings[node][0].target),
            f"over {rows} {'row' if rows == 1 else 'rows'}, groups and the transposes around them are predicted {gain:.1f} times as fast",
        )
    return {node: packings[node] for node in packings if node in found}


def _packing(
    program: Program,
    weight: fx.Node,
    settings: LowerGroupedConv | LowerGroupedLinear,
    log: PassLog,
    use: Use | None = None,
) -> Packing | None:
    values = program.get_parameter(str(weight.target))
    packing, reason = best_packing(values, use=use, force=settings.form == "grouped")
    if packing is None:
        log.skip(str(weight.target), reason)
    return packing


def _replace(program: Program, weight: fx.Node, values: Tensor) -> None:
    surgery.replace_parameter(program, str(weight.target), values)
    weight.meta["spec"] = surgery.spec_of(values, weight.name)


def _index(program: Program, weight: fx.Node, node: fx.Node, values: Tensor) -> fx.Node:
    name = f"{weight.target}_inputs"
    surgery.add_state(program, name, values.contiguous())
    return surgery.state_node(program, "eval", name, before=node)
