"""Trace a model into a `Program` with `torch.export`, once per phase, and prove that the phases behave like the model."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsify.errors import TraceError
from sparsify.ir.agreement import batch_of, compare, map_batch, untouched
from sparsify.ir.nodes import Stage, TensorSpec
from sparsify.ir.program import PHASES, Program, place, skeleton
from sparsify.ir.verifier import verify


class TraceWarning(UserWarning):
    """The trace holds, with a limit the user should know."""


def trace(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    check: bool = True,
) -> Program:
    """Trace ``model`` in training and in eval mode over one set of parameters.

    The program's parameters and buffers are the model's own objects: train the program and the model is trained. The model's
    mode, buffers and gradients and the global RNG are left as they were.

    Args:
        model: any module that `torch.export` can capture.
        args: example positional inputs; the first dimension of each tensor is the batch. A batch of 1 is doubled.
        kwargs: example keyword inputs.
        name: of the program; the class name in snake case by default.
        check: compare both phases with the model at a second batch size: outputs, and gradients in train mode.

    Returns:
        A verified program of stage ``TRACED``, in the model's mode.

    Raises:
        TraceError: If the model cannot be exported, or a phase does not behave like the model.
    """
    if isinstance(model, fx.GraphModule) and not list(model.parameters()):
        raise TraceError(
            "the model has no parameters; there is nothing to make sparse. Pass the module that holds the weights."
        )
    example = _double_single(_as_tuple(args), dict(kwargs or {}))
    mode = model.training
    with untouched(model):
        try:
            model.train()
            _dry_run(model, example)
            exported, dynamic = _export(model, example, "train")
            model.eval()
            graphs = {"train": exported, "eval": _export(model, example, "eval", dynamic=dynamic)[0]}
        finally:
            model.train(mode)
    program = _assemble(model, graphs, name=name or _snake(type(model).__name__), dynamic=dynamic)
    verify(program)
    if check:
        with untouched(model):
            try:
                compare(model, program, example)
            finally:
                model.train(mode)
    return program.train(mode)


# --- export


def _export(
    model: nn.Module, example: tuple[tuple[Any, ...], dict[str, Any]], phase: str, *, dynamic: bool = True
) -> tuple[fx.GraphModule, bool]:
    args, kwargs = example
    batch = batch_of(example)
    flat, spec = pytree.tree_flatten(example)
    shapes = [
        {0: torch.export.Dim.DYNAMIC} if dynamic and isinstance(x, Tensor) and x.ndim and x.shape[0] == batch else None
        for x in flat
    ]
    dynamic_args, dynamic_kwargs = pytree.tree_unflatten(shapes, spec)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(
                model, args, kwargs, dynamic_shapes=_by_argument(model, dynamic_args, dynamic_kwargs), strict=False
            )
            return exported.module(check_guards=False), dynamic  # type: ignore[return-value]
    except Exception as error:
        if dynamic and _is_batch_constraint(error):
            warnings.warn(
                f"{type(model).__name__} fixes its batch size at {batch} ({_first_line(error)}); traced with that batch only.",
                TraceWarning,
                stacklevel=3,
            )
            return _export(model, example, phase, dynamic=False)
        raise TraceError(_export_message(model, phase, error)) from error


def _by_argument(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Dynamic shapes by parameter name of ``forward``; those of ``*args`` and ``**kwargs`` as one tuple and one mapping."""
    signature = inspect.signature(model.forward)
    bound = signature.bind(*args, **kwargs)
    return dict(bound.arguments)


def _is_batch_constraint(error: Exception) -> bool:
    text = str(error)
    return "Constraints violated" in text or "specializ" in text.lower() or "marked" in text


def _export_message(model: nn.Module, phase: str, error: Exception) -> str:
    text = str(error)
    where = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', text)
    site = next(
        (f" at {f.rsplit('/', 1)[-1]}:{line} in {fn}" for f, line, fn in reversed(where) if "/torch/" not in f), ""
    )
    advice = "Replace control flow that depends on tensor values by torch.where or torch.cond, or trace a smaller part."
    if "scaled_dot_product" in text or "sdpa" in text:
        advice = "Load the model with set_attn_implementation('eager') before tracing."
    return f"torch.export cannot capture {type(model).__name__} in {phase} mode{site}: {_first_line(error)}. {advice}"


def _dry_run(model: nn.Module, example: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    args, kwargs = example
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        shapes = [list(x.shape) for x in pytree.tree_leaves(example) if isinstance(x, Tensor)]
        raise TraceError(
            f"{type(model).__name__} fails on example inputs of shapes {shapes}: {type(error).__name__}: {_first_line(error)}. "
            f"Check that the data's shape is what the model expects."
        ) from error


# --- assembly


def _assemble(model: nn.Module, modules: Mapping[str, fx.GraphModule], *, name: str, dynamic: bool) -> Program:
    state = skeleton(model)
    known = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    graphs: dict[str, fx.Graph] = {}
    for phase in PHASES:
        constants = _adopt_constants(modules[phase], state, known, phase)
        graphs[phase] = _flat_graph(modules[phase], phase, constants)
    inputs = tuple(node.meta["spec"] for node in graphs["train"].nodes if node.op == "placeholder")
    return Program(
        state,
        graphs,
        name=name,
        stage=Stage.TRACED,
        input_specs=inputs,
        dynamic_batch=dynamic,
        in_spec=modules["train"]._in_spec,
        out_specs={phase: _out_spec(modules[phase]) for phase in PHASES},
    )


def _out_spec(module: fx.GraphModule) -> pytree.TreeSpec:
    spec = module._out_spec
    assert spec is not None, "torch.export gives every module the structure of its outputs"
    return spec


def _adopt_constants(module: fx.GraphModule, state: nn.Module, known: dict[str, Tensor], phase: str) -> dict[str, str]:
    """Give tensors that export lifted out of the code a buffer of their own; returns new names by old ones."""
    renamed: dict[str, str] = {}
    for node in module.graph.nodes:
        if node.op == "call_module" or (
            node.op == "get_attr" and isinstance(_attribute(module, node.target), nn.Module)
        ):
            raise TraceError(
                f"the model uses {node.target!r}, a nested graph (no_grad, autocast or control flow inside forward). "
                f"Move it out of forward: torch.no_grad parts can be computed with .detach()."
            )
        if node.op == "get_attr" and node.target not in known:
            value = _attribute(module, node.target)
            new = f"constants.{phase}_{str(node.target).replace('.', '_')}"
            place(state, new, value.detach().clone(), persistent=True)
            renamed[str(node.target)] = new
    return renamed


def _attribute(module: nn.Module, target: Any) -> Any:
    value: Any = module
    for part in str(target).split("."):
        value = getattr(value, part)
    return value


def _flat_graph(module: fx.GraphModule, phase: str, constants: Mapping[str, str]) -> fx.Graph:
    """The exported graph with flat inputs and outputs and our own metadata in place of export's."""
    graph = fx.Graph()
    symbols = _symbols(module.graph)
    value_map: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        copied = graph.node_copy(node, lambda n: value_map[n])
        value_map[node] = copied
        if copied.op == "get_attr":
            copied.target = constants.get(str(node.target), node.target)
        copied.meta = _meta(node, symbols, module)
        if copied.op == "output":
            leaves = tuple(copied.args[0])  # type: ignore[arg-type]
            copied.args = (leaves,)
            copied.meta = {"names": _output_names(leaves, _out_spec(module), phase)}
    return graph


def _meta(node: fx.Node, symbols: Mapping[str, str], module: fx.GraphModule) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    value = _attribute(module, node.target) if node.op == "get_attr" else node.meta.get("val")
    if isinstance(value, Tensor):
        shape = tuple(size if isinstance(size, int) else _rename(str(size), symbols) for size in value.shape)
        meta["spec"] = TensorSpec(node.name, shape, str(value.dtype).removeprefix("torch."))
    stack = node.meta.get("nn_module_stack")
    if stack and node.op == "call_function":
        path = str(list(stack.values())[-1][0])
        meta["owner"] = re.sub(r"@\d+", "", path)
    return meta


def _symbols(graph: fx.Graph) -> dict[str, str]:
    """Names of the symbolic sizes, in order of appearance: N for the first, then N1, N2, ..."""
    names: dict[str, str] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            for size in value.shape:
                if not isinstance(size, int):
                    for symbol in re.findall(r"[a-z]\d+", str(size)):
                        names.setdefault(symbol, "N" if not names else f"N{len(names)}")
    return names


def _rename(text: str, symbols: Mapping[str, str]) -> str:
    return re.sub(r"[a-z]\d+", lambda match: symbols.get(match[0], match[0]), text)


def _output_names(leaves: Sequence[Any], spec: pytree.TreeSpec, phase: str) -> tuple[str, ...]:
    """``logits`` for the leaf of that key, else for the first 2-d floating-point one; the others by key or position."""
    keys = [
        _key_text(path)
        for path, _ in pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(len(leaves))), spec))[0]
    ]
    specs = [leaf.meta.get("spec") if isinstance(leaf, fx.Node) else None for leaf in leaves]
    floats = [i for i, s in enumerate(specs) if s is not None and "float" in s.dtype]
    logits = next((i for i, key in enumerate(keys) if key == "logits"), None)
    if logits is None:
        flat = [i for i in floats if len(specs[i].shape) == 2]  # type: ignore[union-attr]
        logits = (flat or floats or [None])[0]
    if logits is None:
        raise TraceError(
            f"the model returns no floating-point tensor in {phase} mode, so there are no logits. Return the class scores."
        )
    names: list[str] = []
    for i, key in enumerate(keys):
        label = "logits" if i == logits else key if key and key != "logits" and not key.isdigit() else f"output_{i}"
        names.append(label if label not in names else f"{label}_{i}")
    return tuple(names)


def _key_text(path: Sequence[Any]) -> str:
    return "_".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)


def _double_single(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch of 1 is repeated: export specialises a dimension of size 1."""
    example = (args, kwargs)
    return map_batch(example, lambda x: torch.cat([x, x])) if batch_of(example) == 1 else example


def _as_tuple(args: Any) -> tuple[Any, ...]:
    if isinstance(args, Tensor):
        raise TraceError("args is a tensor; give a tuple of inputs: sparsify.trace(model, (x,)).")
    return tuple(args)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
