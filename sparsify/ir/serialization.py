"""A program as one file: ``program.json`` (the graphs) and ``state.safetensors`` in a zip. No pickle, no code.

A node's target is stored by name and looked up on load among ATen overloads, a few Python operators and our own mask
operators; anything else is refused, so a file cannot name a function to be run.
"""

from __future__ import annotations

import io
import json
import operator
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsify.errors import LoadError, SparsifyError
from sparsify.ir.nodes import (
    GradientTap,
    RandomnessRecord,
    Stage,
    TensorSpec,
    apply_mask,
    apply_random_mask,
    masked_view,
)
from sparsify.ir.program import Program, place

FORMAT = 1
_EPOCH = (1980, 1, 1, 0, 0, 0)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sparsify.apply_mask": apply_mask,
    "sparsify.masked_view": masked_view,
    "sparsify.apply_random_mask": apply_random_mask,
    **{f"operator.{f.__name__}": f for f in (
        operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, operator.neg,
        operator.pow, operator.getitem, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
        operator.matmul,
    )},
    "torch.sym_max": torch.sym_max, "torch.sym_min": torch.sym_min, "torch.sym_not": torch.sym_not,
    "torch.sym_float": torch.sym_float, "torch.sym_int": torch.sym_int,
}  # fmt: skip
_NAMES = {function: name for name, function in _FUNCTIONS.items()}
_VALUES: dict[str, type] = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def save_program(program: Program, path: Path) -> None:
    """Write ``program`` to ``path``; the file appears whole or not at all. Same program, same bytes."""
    parameters = dict(program.named_parameters(remove_duplicate=False))
    buffers = dict(program.named_buffers(remove_duplicate=False))
    tensors, aliases = _unique({**parameters, **buffers})
    document = {
        "format": FORMAT,
        "name": program.name,
        "stage": program.stage.value,
        "training": program.training,
        "dynamic_batch": program.dynamic_batch,
        "inputs": [_encode_spec(spec) for spec in program.input_specs],
        "in_spec": _encode_tree(program.in_spec),
        "out_specs": {phase: _encode_tree(spec) for phase, spec in program.out_specs.items()},
        "parameters": {name: p.requires_grad for name, p in parameters.items()},
        "buffers": list(buffers),
        "transient": sorted(set(buffers) - set(program.state_dict())),
        "aliases": aliases,
        "taps": sorted(name for name, module in program.named_modules() if isinstance(module, GradientTap)),
        "records": sorted(name for name, module in program.named_modules() if isinstance(module, RandomnessRecord)),
        "graphs": {phase: [_encode_node(n) for n in module.graph.nodes] for phase, module in program.phases.items()},
    }
    data = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("program.json", _EPOCH), json.dumps(document, indent=1))
        archive.writestr(zipfile.ZipInfo("state.safetensors", _EPOCH), save_tensors(data))
    write_atomically(path, buffer.getvalue())


def load_program(path: Path) -> Program:
    """Read a program written by `save_program` and verify it.

    Raises:
        LoadError: If the file is missing, truncated, of another format, or fails verification.
    """
    if not path.is_file():
        raise LoadError(f"no program at {path}: expected a file written by `sparsify trace --out` or Program.save.")
    try:
        with zipfile.ZipFile(path) as archive:
            document = json.loads(archive.read("program.json"))
            tensors = load_tensors(archive.read("state.safetensors"))
        if document.get("format") != FORMAT:
            raise LoadError(
                f"{path} has program format {document.get('format')}, this version reads {FORMAT}. Trace the model again."
            )
        program = _decode_program(document, tensors)
        program.verify()
    except LoadError:
        raise
    except SparsifyError as error:
        raise LoadError(
            f"{path} holds a program that does not pass verification: {error} Trace the model again."
        ) from error
    except Exception as error:
        raise LoadError(
            f"{path} is not a saved program, or it is damaged ({type(error).__name__}: {error}). "
            f"Save it again with Program.save, or give a file.py:factory."
        ) from error
    return program


UNFINISHED = ".unfinished"
"""How temporary names end; a process killed while it writes leaves such a file behind."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write bytes under a temporary name in the same folder, flush to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _unique(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        if first.setdefault(id(tensor), name) != name:
            aliases[name] = first[id(tensor)]
    return {name: tensor for name, tensor in tensors.items() if name not in aliases}, aliases


# --- encoding


def _encode_tree(spec: pytree.TreeSpec) -> str:
    try:
        return pytree.treespec_dumps(spec)
    except Exception as error:
        raise LoadError(
            f"the model's inputs or outputs hold a type that cannot be saved: {error}. Return tensors, tuples or dicts."
        ) from error


def _encode_spec(spec: TensorSpec) -> list[Any]:
    return [spec.name, list(spec.shape), spec.dtype]


def _encode_node(node: fx.Node) -> dict[str, Any]:
    encoded: dict[str, Any] = {"name": node.name, "op": node.op, "target": _encode_target(node.target)}
    encoded["args"] = _encode(node.args)
    if node.kwargs:
        encoded["kwargs"] = _encode(dict(node.kwargs))
    if "spec" in node.meta:
        encoded["spec"] = _encode_spec(node.meta["spec"])
    for key in ("owner", "names"):
        if key in node.meta:
            encoded[key] = node.meta[key] if key == "owner" else list(node.meta[key])
    return encoded


def _encode_target(target: Any) -> str:
    if isinstance(target, str):
        return target
    if isinstance(target, torch._ops.OpOverload):
        return f"op:{target}"
    if target in _NAMES:
        return f"py:{_NAMES[target]}"
    raise LoadError(
        f"the graph calls {target}, which has no file form. Save before inserting it, or use ATen operators only."
    )


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return {"list" if isinstance(value, list) else "tuple": [_encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": {key: _encode(item) for key, item in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_encode(value.start), _encode(value.stop), _encode(value.step)]}
    for kind, cls in _VALUES.items():
        if isinstance(value, cls):
            return {kind: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, float):
        return {"float": repr(value)}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise LoadError(f"the graph holds an argument of type {type(value).__name__}, which has no file form.")


# --- decoding


def _decode_program(document: dict[str, Any], tensors: dict[str, Tensor]) -> Program:
    state, transient = nn.Module(), set(document["transient"])
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        requires_grad = document["parameters"].get(name)
        made[name] = tensor if requires_grad is None else nn.Parameter(tensor, requires_grad)
    made.update({alias: made[name] for alias, name in document["aliases"].items()})
    ordered = dict.fromkeys([*document["parameters"], *document.get("buffers", ()), *made])
    for name in ordered:
        place(state, name, made[name], persistent=name not in transient)
    for name in document["taps"]:
        place(state, name, GradientTap())
    for name in document.get("records", ()):
        place(state, name, RandomnessRecord())
    return Program(
        state,
        {phase: _decode_graph(nodes) for phase, nodes in document["graphs"].items()},
        name=document["name"],
        stage=Stage(document["stage"]),
        input_specs=tuple(_decode_spec(spec) for spec in document["inputs"]),
        dynamic_batch=document["dynamic_batch"],
        in_spec=pytree.treespec_loads(document["in_spec"]),
        out_specs={phase: pytree.treespec_loads(spec) for phase, spec in document["out_specs"].items()},
    ).train(document["training"])


def _decode_spec(encoded: list[Any]) -> TensorSpec:
    name, shape, dtype = encoded
    return TensorSpec(name, tuple(shape), dtype)


def _decode_graph(nodes: list[dict[str, Any]]) -> fx.Graph:
    graph, by_name = fx.Graph(), dict[str, fx.Node]()
    for encoded in nodes:
        node = graph.create_node(
            encoded["op"],
            _decode_target(encoded["target"]),
            _decode(encoded["args"], by_name),
            _decode(encoded["kwargs"], by_name) if "kwargs" in encoded else {},
            name=encoded["name"],
        )
        node.name = encoded["name"]
        by_name[encoded["name"]] = node
        if "spec" in encoded:
            node.meta["spec"] = _decode_spec(encoded["spec"])
        if "owner" in encoded:
            node.meta["owner"] = encoded["owner"]
        if "names" in encoded:
            node.meta["names"] = tuple(encoded["names"])
    return graph


def _decode_target(text: str) -> Any:
    kind, _, rest = text.partition(":")
    if kind == "py":
        return _FUNCTIONS[rest]
    if kind == "op":
        namespace, name, overload = rest.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)
    return text


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "node":
        return nodes[inner]
    if kind in ("list", "tuple"):
        items = [_decode(item, nodes) for item in inner]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {key: _decode(item, nodes) for key, item in inner.items()}
    if kind == "slice":
        return slice(*(_decode(item, nodes) for item in inner))
    if kind == "float":
        return float(inner)
    if kind == "device":
        return torch.device(inner)
    found = getattr(torch, inner)
    if not isinstance(found, _VALUES[kind]):
        raise LoadError(f"the file names torch.{inner} as a {kind}, which it is not.")
    return found
