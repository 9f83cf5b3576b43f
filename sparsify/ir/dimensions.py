"""Dimensions of inputs that vary: the batch ``N``, and those declared when a model is traced, by name."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sparsify.errors import TraceError
from sparsify.ir.size_ranges import SizeRange

BATCH = "N"
Example = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a model."""
Declared = Mapping[str, Mapping[int, str]]
"""Names of the dimensions that vary, by input and place: ``{"ids": {1: "T"}}``."""
Limits = Mapping[str, tuple[int, int | None]]
"""Smallest and largest size of each dimension, by name; None means no upper bound."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")
_RESERVED = re.compile(r"N\d+|batch|[su]\d+|Max|Min|Mod|FloorDiv|floor|ceiling")
"""Names that traces and files use for other sizes."""
_PLACE = re.compile(r"(\w+):(-?\d+)=(\w+)")
_LIMIT = re.compile(r"(\w+)=(\d+)\.\.(\d*)")


@dataclass(frozen=True)
class Dimensions:
    """Which dimensions of an example vary.

    Attributes:
        inputs: names of the flat inputs in order, including arguments that are not tensors.
        places: names of the dimensions that vary, by input and place (from 0).
        limits: the sizes that the user allows, by name of the dimension.
    """

    inputs: tuple[str, ...]
    places: Mapping[str, Mapping[int, str]]
    limits: Mapping[str, SizeRange] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the varying dimensions: the batch first if it varies, then the others in order of appearance."""
        found = dict.fromkeys(name for places in self.places.values() for name in places.values())
        return tuple(sorted(found, key=lambda name: name != BATCH))

    def without(self, name: str) -> Dimensions:
        """Return these dimensions with one of them fixed."""
        kept = {i: {at: n for at, n in places.items() if n != name} for i, places in self.places.items()}
        return Dimensions(self.inputs, {i: places for i, places in kept.items() if places}, self.limits)

    def sizes(self, example: Example) -> dict[str, int]:
        """Return the sizes of an example by name of the dimension."""
        leaves = dict(zip(self.inputs, pytree.tree_leaves(example), strict=True))
        return {name: int(leaves[i].shape[at]) for i, places in self.places.items() for at, name in places.items()}

    def of_each(self, example: Example) -> list[dict[int, str]]:
        """Return, for each flat value of an example, its varying dimensions by place."""
        return [
            dict(self.places.get(name, {})) for name, _ in zip(self.inputs, pytree.tree_leaves(example), strict=True)
        ]

    def resized(self, example: Example, sizes: Mapping[str, int]) -> Example:
        """Resize the example: take its first values along each dimension, and repeat them if there are too few."""
        leaves, structure = pytree.tree_flatten(example)
        made = [
            resized(leaf, {at: sizes[name] for at, name in places.items() if name in sizes}) if places else leaf
            for leaf, places in zip(leaves, self.of_each(example), strict=True)
        ]
        return pytree.tree_unflatten(made, structure)


def resized(value: Tensor, sizes: Mapping[int, int]) -> Tensor:
    """Resize a tensor, ``sizes`` by dimension: take its first values, repeat them if there are too few; the result is contiguous."""
    for at, size in sizes.items():
        have = value.shape[at]
        if have < size:
            value = value.index_select(at, torch.arange(size, device=value.device) % have)
        value = value.narrow(at, 0, size)
    return value.contiguous()


def input_names(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the flat inputs as torch.export does: the argument's name and the path inside it (``parts_a``, ``rest_0``)."""
    paths = [path for path, _ in pytree.tree_flatten_with_path(dict(arguments))[0]]
    keys = [[getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in path] for path in paths]
    return tuple(joined(path) for path in keys)


def joined(path: Sequence[Any]) -> str:
    """Make the name of an input from its path."""
    return "_".join(re.sub(r"[^a-zA-Z0-9]", "_", str(key)) for key in path)


# --- what the user declares


def parsed(texts: Sequence[str]) -> tuple[dict[str, dict[int, str]], dict[str, tuple[int, int | None]]]:
    """Parse dimensions and limits as the command and recipes spell them: ``ids:1=T`` and ``T=1..512`` (``T=8..``: no upper bound).

    Raises:
        TraceError: If a text has another form, or contradicts one before it.
    """
    places: dict[str, dict[int, str]] = {}
    limits: dict[str, tuple[int, int | None]] = {}
    for text in texts:
        if found := _PLACE.fullmatch(text.strip()):
            before, named = f"{found[1]}:{found[2]}", places.setdefault(found[1], {})
            if named.setdefault(int(found[2]), found[3]) != found[3]:
                raise TraceError(
                    f"{text!r} names {before} again, which is {named[int(found[2])]!r} already. Give it one name."
                )
        elif found := _LIMIT.fullmatch(text.strip()):
            sizes = int(found[2]), int(found[3]) if found[3] else None
            if limits.setdefault(found[1], sizes) != sizes:
                raise TraceError(f"{text!r} gives {found[1]} other sizes than before. Give them once.")
        else:
            raise TraceError(
                f"a dimension that varies is written INPUT:PLACE=NAME, as in ids:1=T, and its sizes NAME=LOW..HIGH, as in T=1..512; "
                f"found {text!r}. Write it that way."
            )
    return places, limits


def declared(inputs: Sequence[str], leaves: Sequence[Any], dynamic: Declared, limits: Limits) -> Dimensions:
    """Collect the dimensions that vary: the batch of every input that has one, and those that the user declares.

    Args:
        inputs: names of the flat inputs.
        leaves: the flat inputs.
        dynamic: the user's declaration; ``{"x": {0: "E"}}`` says that the first dimension of ``x`` is not the batch.
        limits: the user's smallest and largest sizes, by name of the dimension.

    Raises:
        TraceError: If an input or dimension does not exist, a name cannot be used, the sizes of one name differ, or limits exclude them.
    """
    for option, value, written in (
        ("dynamic", dynamic, "{'ids': {1: 'T'}}"),
        ("limits", limits, "{'T': (1, 512)}"),
    ):
        if not isinstance(value, Mapping):
            raise TraceError(f"{option} should be a mapping, found {type(value).__name__}. Write {option}={written}.")
    values = {name: leaf for name, leaf in zip(inputs, leaves, strict=True) if isinstance(leaf, Tensor)}
    places: dict[str, dict[int, str]] = {}
    for name, given in dynamic.items():
        if name not in values:
            raise TraceError(
                f"dynamic names the input {name!r}; expected one of {', '.join(values)}. Name an input that is a tensor."
            )
        for at, dimension in _mapping(name, given).items():
            places.setdefault(name, {})[_checked(name, values[name], at, dimension)] = dimension
    batch = next((v.shape[0] for n, v in values.items() if v.ndim and places.get(n, {}).get(0, BATCH) == BATCH), None)
    for name, value in values.items():
        if value.ndim and value.shape[0] == batch:
            places.setdefault(name, {}).setdefault(0, BATCH)
    found = Dimensions(tuple(inputs), {name: dict(sorted(places[name].items())) for name in values if name in places})
    _same_sizes(values, found)
    return Dimensions(found.inputs, found.places, _ranges(found, values, limits))


def _mapping(name: str, given: object) -> Mapping[Any, Any]:
    if not isinstance(given, Mapping):
        raise TraceError(
            f"dynamic holds places and names for each input, found {given!r} for {name!r}. Write dynamic={{{name!r}: {{1: 'T'}}}}."
        )
    return given


def _checked(name: str, value: Tensor, at: Any, dimension: Any) -> int:
    if type(at) is not int or not -value.ndim <= at < value.ndim:
        raise TraceError(
            f"dynamic names dimension {at!r} of input {name!r}, which has shape {list(value.shape)}. Count its dimensions from 0."
        )
    if not isinstance(dimension, str) or not _NAME.fullmatch(dimension) or _RESERVED.fullmatch(dimension):
        raise TraceError(
            f"dynamic calls dimension {at} of input {name!r} {dimension!r}; expected a name of letters, digits and _, such as 'T' (not "
            f"'batch', which is called 'N', and not N and a number). Choose another name."
        )
    return at % value.ndim


def _same_sizes(values: Mapping[str, Tensor], found: Dimensions) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for name, places in found.places.items():
        for at, dimension in places.items():
            size = int(values[name].shape[at])
            first, where = sizes.setdefault(dimension, (size, f"dimension {at} of {name!r}"))
            if size != first:
                raise TraceError(
                    f"dimensions of one name have one size; {dimension} is {first} in {where} of the example, and {size} in dimension "
                    f"{at} of {name!r}. Give them two names, or an example of one size."
                )


def _ranges(found: Dimensions, values: Mapping[str, Tensor], limits: Limits) -> dict[str, SizeRange]:
    sizes = {d: int(values[name].shape[at]) for name, places in found.places.items() for at, d in places.items()}
    ranges: dict[str, SizeRange] = {}
    for name, given in limits.items():
        if name not in sizes:
            raise TraceError(
                f"limits names the dimension {name!r}; expected one of {', '.join(sizes)}. Declare it in dynamic."
            )
        try:
            low, high = given
            ranges[name] = SizeRange(low, high)
        except (TypeError, ValueError) as error:
            raise TraceError(
                f"limits of dimension {name!r} are a smallest and a largest size, found {given!r}. Write (1, 512), or (1, None)."
            ) from error
        if sizes[name] not in ranges[name]:
            raise TraceError(
                f"the example has {name} = {sizes[name]}, outside the limits {ranges[name].text(name)}. Give an example within them."
            )
    return ranges


# --- sizes in text


_ARITHMETIC: Mapping[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod
}  # fmt: skip
_CALLS: Mapping[str, Callable[[int, int], int]] = {"Max": max, "Min": min, "Mod": operator.mod}


def value_of(size: int | str, sizes: Mapping[str, int]) -> int | None:
    """Evaluate a size written as text, such as ``"2*T + 1"``; None if it contains more than sums, products and known names."""
    if isinstance(size, int):
        return size
    if size in sizes:
        return sizes[size]
    try:
        return _value(ast.parse(size.strip(), mode="eval").body, sizes)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _value(tree: ast.AST, sizes: Mapping[str, int]) -> int:
    match tree:
        case ast.Constant(value=int() as number):
            return number
        case ast.Name(id=name) if name in sizes:
            return sizes[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, sizes)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.Call(func=ast.Name(id=name), args=[left, right], keywords=[]) if name in _CALLS:
            return _CALLS[name](_value(left, sizes), _value(right, sizes))
        case _:
            raise ValueError(f"{ast.dump(tree)} is not a size")


def mentions(size: int | str, name: str) -> bool:
    """Return whether a size depends on a dimension."""
    return isinstance(size, str) and re.search(rf"\b{name}\b", size) is not None


def multiplied(size: int | str, name: str, factor: int) -> int | str:
    """Return a size in which a dimension is ``factor`` times as large: ``"2*N"`` becomes ``"8*N"`` with 4."""
    if not mentions(size, name):
        return size
    found = re.fullmatch(rf"(?:(\d+)\*)?{name}", str(size))
    if found is not None:
        return f"{int(found[1] or 1) * factor}*{name}" if int(found[1] or 1) * factor != 1 else name
    return re.sub(rf"\b{name}\b", f"({factor}*{name})", str(size))


def divided(size: int | str, name: str, factor: int) -> int | str:
    """Return the size from which `multiplied` made ``size`` with the same factor; a size that it did not make stays as it is."""
    if (
        isinstance(size, str)
        and (found := re.fullmatch(rf"(\d+)\*{name}", size)) is not None
        and not int(found[1]) % factor
    ):
        return multiplied(name, name, int(found[1]) // factor)
    return size.replace(f"({factor}*{name})", name) if isinstance(size, str) else size
