"""A program as one file: ``program.json`` (the graphs) and ``state.safetensors`` in a zip. No pickle, no code.

A file may come from anyone. Loading checks its document field by field (`sparsify.ir.document`), allows only operators of one list
(`sparsify.ir.operators`), and runs the graphs once without values to bound the sizes they create (`sparsify.ir.rehearsal`). Saving makes
the same checks, so a program that could not be loaded is refused when it is saved.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsify.errors import LoadError, SparsifyError
from sparsify.files import write_atomically
from sparsify.ir.binding import KINDS, UNKNOWN
from sparsify.ir.compaction import stored_dense
from sparsify.ir.document import LONGEST_NOTE, NodeForm, ProgramForm, checked_document, task_of
from sparsify.ir.foreign import checked_keyword, checked_text
from sparsify.ir.nodes import LEVEL, MADE_BY, GradientTap, RandomnessRecord, Stage, TensorSpec
from sparsify.ir.operators import FUNCTIONS, aten_operator
from sparsify.ir.phase import FULL_PRECISION
from sparsify.ir.rehearsal import rehearse
from sparsify.ir.size_ranges import SizeRange
from sparsify.ir.state import place
from sparsify.tasks.stored import to_data
from sparsify.untrusted import INTEGERS, parse_json

if TYPE_CHECKING:
    from sparsify.ir.program import Program

FORMAT = 1
_EPOCH = (1980, 1, 1, 0, 0, 0)
_NAMES = {function: name for name, function in FUNCTIONS.items()}
_VALUES: dict[str, type] = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def save_program(program: Program, path: Path) -> None:
    """Write ``program`` to ``path``; the file appears whole or not at all. Same program, same bytes.

    Raises:
        LoadError: If the program contains something that could not be loaded again.
    """
    program = stored_dense(program)
    parameters = dict(program.named_parameters(remove_duplicate=False))
    buffers = dict(program.named_buffers(remove_duplicate=False))
    tensors, aliases = _unique({**parameters, **buffers})
    document = {
        "format": FORMAT,
        "name": program.name,
        "stage": program.stage.value,
        "training": program.training,
        "dynamic_batch": program.dynamic_batch,
        **({"unfinished": program.unfinished[:LONGEST_NOTE]} if program.unfinished else {}),
        **_encode_task(program),
        **_encode_limits(program),
        "inputs": [_encode_spec(spec) for spec in program.input_specs],
        "in_spec": _encode_tree(program.in_spec),
        "forward": _encode_signature(program.signature),
        "out_specs": {phase: _encode_tree(spec) for phase, spec in program.out_specs.items()},
        "parameters": {name: p.requires_grad for name, p in parameters.items()},
        "buffers": list(buffers),
        "transient": sorted(set(buffers) - set(program.state_dict())),
        "aliases": aliases,
        "taps": sorted(name for name, module in program.named_modules() if isinstance(module, GradientTap)),
        "records": sorted(name for name, module in program.named_modules() if isinstance(module, RandomnessRecord)),
        "graphs": {phase: [_encode_node(n) for n in module.graph.nodes] for phase, module in program.phases.items()},
    }
    try:
        _graphs(checked_document(document))
    except LoadError as error:
        raise LoadError(f"program {program.name!r} cannot be saved: {error}") from error
    data = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("program.json", _EPOCH), json.dumps(document, indent=1))
        archive.writestr(zipfile.ZipInfo("state.safetensors", _EPOCH), save_tensors(data))
    if path.is_dir():
        raise LoadError(f"{path} is a folder. Give the file to write, such as {path / 'model.sparsify'}.")
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise LoadError(f"cannot write {path}: {error.strerror or error}. Choose another place.") from error


def load_program(path: Path, make: type[Program]) -> Program:
    """Read a program written by `save_program` and verify it.

    Args:
        path: path of the file.
        make: the class of the program to make.

    Raises:
        LoadError: If the file is missing, truncated, of another format, or fails verification.
    """
    if path.is_dir():
        raise LoadError(f"{path} is a folder. Give a file written by `sparsify trace --out` or Program.save.")
    if not path.is_file():
        raise LoadError(f"no program at {path}: expected a file written by `sparsify trace --out` or Program.save.")
    try:
        document, tensors = _parts(path)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            found = document.get("format") if isinstance(document, dict) else document
            raise LoadError(f"it has program format {str(found)[:80]}, this version reads {FORMAT}.")
        program = _decode_program(checked_document(document), tensors, make)
        program.verify()
        rehearse(program)
    except LoadError as error:
        raise LoadError(
            f"{path} is refused: {error} Save it again with Program.save, or trace the model again."
        ) from error
    except SparsifyError as error:
        raise LoadError(
            f"{path} holds a program that does not pass verification: {error} Trace the model again."
        ) from error
    except Exception as error:
        raise LoadError(
            f"{path} is not a saved program, or it is damaged ({type(error).__name__}: {str(error)[:500]}). "
            f"Give a file written by `sparsify trace --out`, by a run (program.sparsify) or by Program.save."
        ) from error
    return program


def _parts(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """Read document and tensors. Both parts must be uncompressed, so that neither can be larger than the file."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sorted(entry.filename for entry in entries) != ["program.json", "state.safetensors"]:
            raise LoadError(
                f"it should hold program.json and state.safetensors, found {[e.filename for e in entries[:5]]}."
            )
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > path.stat().st_size:
                raise LoadError(f"its part {entry.filename} is compressed, which Program.save never does.")
        return parse_json(archive.read("program.json")), load_tensors(archive.read("state.safetensors"))


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


def _encode_task(program: Program) -> dict[str, Any]:
    found = None if program.task is None else to_data(program.task)
    return {} if found is None else {"task": found}


def _encode_limits(program: Program) -> dict[str, Any]:
    """Encode the limits on the calls of a program; empty without limits, as in files of earlier versions."""
    limits: dict[str, Any] = {}
    if not all(allowed.everything for ranges in program.ranges.values() for allowed in ranges.values()):
        limits["ranges"] = {
            phase: {name: {**dataclasses.asdict(r), "excluded": list(r.excluded)} for name, r in ranges.items()}
            for phase, ranges in program.ranges.items()
        }
    if program.sizes:
        limits["sizes"] = program.sizes
    if program.constants:
        limits["constants"] = [[place, _encode(value)] for place, value in program.constants.items()]
    return limits


def _encode_signature(signature: inspect.Signature) -> list[list[Any]]:
    """Encode name and kind of each parameter, and a list with its default if it has one; the list is empty if that is not a constant."""
    kinds = {kind: name for name, kind in KINDS.items()}
    given = {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty}
    defaults = {name: [] if value is UNKNOWN else [_encode(value)] for name, value in given.items()}
    return [[p.name, kinds[p.kind], defaults.get(p.name)] for p in signature.parameters.values()]


def _encode_node(node: fx.Node) -> dict[str, Any]:
    encoded: dict[str, Any] = {"name": node.name, "op": node.op, "target": _encode_target(node.target)}
    encoded["args"] = _encode(node.args)
    if node.kwargs:
        encoded["kwargs"] = _encode(dict(node.kwargs))
    if "spec" in node.meta:
        encoded["spec"] = _encode_spec(node.meta["spec"])
    for key in ("owner", "names", FULL_PRECISION, LEVEL):
        if key in node.meta:
            encoded[key] = list(node.meta[key]) if key == "names" else node.meta[key]
    if MADE_BY in node.meta:
        encoded["heads"] = dict(node.meta[MADE_BY])
    return encoded


def _encode_target(target: Any) -> str:
    if isinstance(target, str):
        return target
    if target in _NAMES:
        return f"py:{_NAMES[target]}"
    if isinstance(target, torch._ops.OpOverload):
        return f"op:{target}"
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
    if value is None or isinstance(value, (bool, str)) or (isinstance(value, int) and value in INTEGERS):
        return value
    raise LoadError(f"the graph holds an argument of type {type(value).__name__}, which has no file form.")


# --- decoding


_DEVICE = re.compile(r"(cpu|cuda|mps|meta)(:\d{1,3})?")


def _decode_program(document: ProgramForm, tensors: dict[str, Tensor], make: type[Program]) -> Program:
    state, transient = nn.Module(), set(document.transient)
    expected = {*document.parameters, *(document.buffers if document.buffers is not None else tensors)}
    if found := expected ^ {*tensors, *document.aliases}:
        raise LoadError(f"its program.json and its tensors differ: {sorted(found)[0][:80]!r} is in one of them only.")
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        requires_grad = document.parameters.get(name)
        made[name] = tensor if requires_grad is None else nn.Parameter(tensor, requires_grad)
    made.update({alias: made[name] for alias, name in document.aliases.items()})
    for name in dict.fromkeys([*document.parameters, *(document.buffers or ()), *made]):
        place(state, name, made[name], persistent=name not in transient)
    for name in document.taps:
        place(state, name, GradientTap())
    for name in document.records:
        place(state, name, RandomnessRecord())
    in_spec = pytree.treespec_loads(document.in_spec)
    sides = in_spec.children()
    if in_spec.type is not tuple or [side.type for side in sides] != [tuple, dict]:
        raise LoadError("its in_spec is not a tuple of positional arguments and a mapping of named ones.")
    program = make(
        state,
        _graphs(document),
        name=document.name,
        stage=Stage(document.stage),
        input_specs=tuple(_decode_spec(spec) for spec in document.inputs),
        dynamic_batch=document.dynamic_batch,
        in_spec=in_spec,
        out_specs={phase: pytree.treespec_loads(spec) for phase, spec in document.out_specs.items()},
        sizes=document.sizes,
        ranges=_decode_ranges(document),
        constants={place: _decode(value, {}) for place, value in document.constants},
        signature=_decode_signature(document),
    ).train(document.training)
    program.unfinished = document.unfinished
    program.task = task_of(document)
    return program


def _decode_signature(document: ProgramForm) -> inspect.Signature | None:
    if document.forward is None:
        return None
    found: list[inspect.Parameter] = []
    for name, kind, default in document.forward:
        value = inspect.Parameter.empty if default is None else _decode(default[0], {}) if default else UNKNOWN
        found.append(inspect.Parameter(name, KINDS[kind], default=value))
    return inspect.Signature(found)


def _decode_ranges(document: ProgramForm) -> dict[str, dict[str, SizeRange]]:
    earlier = {phase: {"N": form} for phase, form in document.batch_ranges.items()}
    return {
        phase: {name: SizeRange(form.low, form.high, form.step, tuple(form.excluded)) for name, form in ranges.items()}
        for phase, ranges in (document.ranges or earlier).items()
    }


def _graphs(document: ProgramForm) -> dict[str, fx.Graph]:
    return {phase: _decode_graph(nodes) for phase, nodes in document.graphs.items()}


def _decode_spec(encoded: tuple[str, list[int | str], str]) -> TensorSpec:
    name, shape, dtype = encoded
    return TensorSpec(name, tuple(shape), dtype)


def _decode_graph(nodes: list[NodeForm]) -> fx.Graph:
    graph, by_name = fx.Graph(), dict[str, fx.Node]()
    for encoded in nodes:
        args = _decode(encoded.args, by_name)
        kwargs = {} if encoded.kwargs is None else _decode(encoded.kwargs, by_name)
        if not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise LoadError(
                f"the positional arguments of %{encoded.name} are not a tuple, or its named arguments are not a mapping."
            )
        for name in kwargs:
            _checked(checked_keyword, name)
        target = _decode_target(encoded.target) if encoded.op == "call_function" else encoded.target
        node = graph.create_node(encoded.op, target, args, kwargs, name=encoded.name)
        node.name = encoded.name
        by_name[encoded.name] = node
        if encoded.spec is not None:
            node.meta["spec"] = _decode_spec(encoded.spec)
        if encoded.owner is not None:
            node.meta["owner"] = encoded.owner
        if encoded.full_precision:
            node.meta[FULL_PRECISION] = True
        if encoded.names is not None:
            node.meta["names"] = tuple(encoded.names)
            node.meta.update({MADE_BY: dict(encoded.heads)} if encoded.heads else {})
            node.meta.update({LEVEL: encoded.level} if encoded.level is not None else {})
    return graph


def _decode_target(text: str) -> Any:
    kind, _, rest = text.partition(":")
    if kind == "op":
        return aten_operator(rest)
    if kind != "py" or rest not in FUNCTIONS:
        raise LoadError(f"a graph from a file may not call {text[:100]!r}.")
    return FUNCTIONS[rest]


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, str):
        return _checked(checked_text, value)
    if isinstance(value, (bool, int)) or value is None:
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise LoadError(f"the argument {str(value)[:80]} has no form that a program file knows.")
    ((kind, inner),) = value.items()
    match kind, inner:
        case "node", str() if inner in nodes:
            return nodes[inner]
        case "list", list():
            return [_decode(item, nodes) for item in inner]
        case "tuple", list():
            return tuple(_decode(item, nodes) for item in inner)
        case "dict", dict():
            return {_checked(checked_text, key): _decode(item, nodes) for key, item in inner.items()}
        case "slice", [start, stop, step]:
            return slice(_decode(start, nodes), _decode(stop, nodes), _decode(step, nodes))
        case "float", str() if len(inner) < 40:
            return float(inner)
        case "device", str() if _DEVICE.fullmatch(inner):
            return torch.device(inner)
        case (("dtype" | "layout" | "memory_format"), str()) if inner.isidentifier():
            found = getattr(torch, inner, None)
            if isinstance(found, _VALUES[kind]):
                return found
        case _:
            pass
    raise LoadError(
        f"the argument {str(value)[:80]} has no form that a program file knows, or names what is not there."
    )


def _checked(rule: Callable[[str], str], text: str) -> str:
    try:
        return rule(text)
    except ValueError as error:
        raise LoadError(f"{error}.") from error
