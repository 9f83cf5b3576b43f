"""Binds the arguments of a call through the signature of the model's ``forward``: each may be given by position or by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsify.errors import TraceError
from sparsify.ir.inputs import brief

if TYPE_CHECKING:
    from sparsify.ir.program import Program

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""Arguments of a call: one tensor, a tuple of positional arguments, or a mapping of arguments by name."""
KINDS = {
    "positional": inspect.Parameter.POSITIONAL_ONLY,
    "plain": inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "rest": inspect.Parameter.VAR_POSITIONAL,
    "keyword": inspect.Parameter.KEYWORD_ONLY,
    "options": inspect.Parameter.VAR_KEYWORD,
}
UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda self: "..."})()
"""Stands for a default that is not a constant. A call may leave such an argument out only if the trace did."""
_CONSTANTS = (bool, int, float, str, type(None))
_PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def arguments_of(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split inputs into positional and keyword arguments: a tensor is the first argument, a mapping holds arguments by name.

    Raises:
        TraceError: If the inputs are of another kind, or a key is not a string.
    """
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        if other := [key for key in inputs if not isinstance(key, str)]:
            raise TraceError(f"a mapping of inputs needs the names of forward's arguments as keys, found {other[0]!r}.")
        return (), dict(inputs)
    if not isinstance(inputs, (tuple, list)):
        raise TraceError(
            f"inputs should be a tensor, a tuple of arguments or a mapping of them by name, found {brief(inputs)}. "
            f"Write (x,) or {{'x': x}}."
        )
    return tuple(inputs), {}


# --- signatures


def signature_of(model: nn.Module) -> inspect.Signature:
    """Return the signature of ``forward`` without annotations; defaults that are not constants become `UNKNOWN`."""
    try:
        found = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # compiled code has no signature
        return open_signature()
    return inspect.Signature([
        inspect.Parameter(p.name, p.kind, default=_default(p.default)) for p in found
    ])  # fmt: skip


def open_signature() -> inspect.Signature:
    """Return a signature that accepts all arguments; calls must then have the structure of the trace."""
    return inspect.Signature([
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
    ])  # fmt: skip


def _default(value: Any) -> Any:
    return value if value is inspect.Parameter.empty or type(value) in _CONSTANTS else UNKNOWN


def ordered(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Sort keyword arguments into the order of ``forward``, because torch.export names inputs by their order.

    Raises:
        TraceError: If the names are not those of ``forward``, or a required argument is missing.
    """
    signature = signature_of(model)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TraceError(
            f"the inputs do not fit {type(model).__name__}.forward: {error}. It takes {signature}; found "
            f"{_given(args, kwargs)}. Give inputs by these names."
        ) from error
    places = {name: place for place, name in enumerate(signature.parameters)}
    return args, dict(sorted(kwargs.items(), key=lambda item: places.get(item[0], len(places))))


# --- calls


def traced_names(program: Program) -> tuple[list[str], list[str]]:
    """Return the names of the arguments that the trace got by position, and of those that it got by name."""
    args, kwargs = program.in_spec.children()
    plain = [p.name for p in program.signature.parameters.values() if p.kind in _PLAIN]
    rest = next((p.name for p in program.signature.parameters.values() if p.kind is p.VAR_POSITIONAL), "args")
    positional = plain[: args.num_children]
    positional += [f"{rest}[{i}]" for i in range(args.num_children - len(positional))]
    return positional, list(kwargs.context)


def leaves_of(program: Program, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Flatten the arguments of a call in the order of the trace; each may be given by position or by name.

    Raises:
        TraceError: If names are missing or unknown, or the structure of a value differs from the trace.
    """
    positional, keyword = traced_names(program)
    wanted = [*positional, *keyword]
    try:
        values = _by_name(program.signature, args, kwargs)
    except TypeError as error:
        raise TraceError(_refusal(program, wanted, args, kwargs, str(error))) from error
    if missing := [name for name in wanted if name not in values]:
        raise TraceError(_refusal(program, wanted, args, kwargs, f"missing {_listed(missing)}"))
    strange = [name for name in values if name not in wanted and not _is_default(program.signature, name, values[name])]
    if strange:
        raise TraceError(_refusal(program, wanted, args, kwargs, f"the trace left out {_listed(strange)}"))
    flat: list[Any] = []
    structures = [spec for side in program.in_spec.children() for spec in side.children()]
    for name, spec in zip(wanted, structures, strict=True):
        try:
            flat.extend(spec.flatten_up_to(values[name]))
        except ValueError as error:
            raise TraceError(
                f"argument {name!r} of program {program.name!r} was traced with the structure {_structure(spec)}, found "
                f"{_structure(pytree.tree_structure(values[name]))} ({str(error).rstrip('.')}). Give it that structure, or trace again."
            ) from error
    return flat


def _by_name(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name, including constant defaults."""
    bound = signature.bind(*args, **kwargs).arguments
    values: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            values.update({f"{name}[{i}]": value for i, value in enumerate(bound.get(name, ()))})
        elif parameter.kind is parameter.VAR_KEYWORD:
            values.update(bound.get(name, {}))
        elif name in bound:
            values[name] = bound[name]
        elif type(parameter.default) in _CONSTANTS:
            values[name] = parameter.default
    return values


def _is_default(signature: inspect.Signature, name: str, value: Any) -> bool:
    parameter = signature.parameters.get(name)
    default = inspect.Parameter.empty if parameter is None else parameter.default
    return type(default) in _CONSTANTS and type(value) is type(default) and value == default


def _refusal(
    program: Program, wanted: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], reason: str
) -> str:
    return (
        f"program {program.name!r} was traced with the arguments {', '.join(wanted)}; found {_given(args, kwargs)}: {reason}. "
        f"Give those arguments, by position or by name, or trace the model again with others."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    parts = [f"{len(args)} by position"] if args else []
    parts += [", ".join(kwargs)] if kwargs else []
    return " and ".join(parts) or "none"


def _structure(spec: pytree.TreeSpec) -> str:
    return "a single value" if spec.is_leaf() else " ".join(str(spec).split())[:200]


# --- in files


def plain_signature(names: Sequence[str], spec: pytree.TreeSpec) -> inspect.Signature:
    """Build the signature of a program file of an earlier version, from the names of its inputs, if each argument is one input."""
    args, kwargs = spec.children()
    plain = args.num_children + kwargs.num_children == spec.num_leaves == len(names)
    given = list(names[: args.num_children])
    if not plain or not all(name.isidentifier() for name in given) or len({*given, *kwargs.context}) < len(names):
        return open_signature()
    return inspect.Signature([
        *(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in given),
        *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in kwargs.context),
    ])  # fmt: skip


def plain_inputs(spec: pytree.TreeSpec) -> int:
    """Return the number of positional arguments of a call if each is a single value and there are no others; else -1."""
    count = spec.num_leaves
    return count if spec == pytree.tree_structure(((0,) * count, {})) else -1
