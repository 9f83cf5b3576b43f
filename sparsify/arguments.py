"""Check the arguments of public functions against their annotations before the functions run.

Callers who use no type checker get an error of the package that says what was expected and what was found, instead of an error of Python
from somewhere inside.
"""

from __future__ import annotations

import collections.abc
import difflib
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from sparsify.errors import SparsifyError

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type[Any])

LATER = "checked where it is read"
"""Used as ``Annotated[float | str, LATER]``: the argument is not checked here, because the function's own error says more."""
SPARSITY = ("sparsity", "amount", "prune_ratio")
"""Names that other libraries give to the inactive share."""


def checked(error: type[SparsifyError], **told: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function refuse unknown and missing arguments, and arguments that do not fit their annotations.

    Args:
        error: class of the error.
        told: by parameter, the message for a value of another type; ``{name}`` and ``{found}`` in it stand for the function and the value.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        name = function.__qualname__.removesuffix(".__init__").rpartition(".<locals>.")[2]

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            given = bound(signature, name, args, kwargs, error)
            check(given, hints_of(function), name, error, told)
            return function(*args, **kwargs)

        return called

    return decorate


def checked_fields(error: type[SparsifyError]) -> Callable[[C], C]:
    """Make a dataclass refuse arguments as `checked` does."""

    def decorate(cls: C) -> C:
        made, signature = cls.__init__, inspect.signature(cls)

        @functools.wraps(made)
        def __init__(self: object, *args: Any, **kwargs: Any) -> None:
            check(bound(signature, cls.__name__, args, kwargs, error), hints_of(cls), cls.__name__, error)
            made(self, *args, **kwargs)

        cls.__init__ = __init__
        return cls

    return decorate


def bound(
    signature: inspect.Signature, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], error: type[SparsifyError]
) -> dict[str, Any]:
    """Return the arguments of a call by parameter, without those of ``*args`` and ``**kwargs``.

    Raises:
        SparsifyError: Of the given class, if there are too many arguments, an unknown one, or one is missing.
    """
    known = [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    names, takes_any = [p.name for p in known], any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for key in kwargs:
        if key not in names and not takes_any:
            raise error(f"{name} has no argument {key!r}.{_advice(key, kwargs[key], names)}")
    try:
        arguments = signature.bind(*args, **kwargs).arguments
    except TypeError as problem:
        raise error(f"{name}: {problem}. It takes {', '.join(names) or 'nothing'}.") from problem
    return {key: value for key, value in arguments.items() if key in names}


def _advice(key: str, value: object, names: Sequence[str]) -> str:
    if key in SPARSITY and "density" in names:
        if isinstance(value, int | float) and 0 <= value < 1:
            return f" Sparsity is the inactive share: write density={1 - value:.6g}."
        return " Sparsity is the inactive share: write density=0.1 for sparsity 0.9."
    near = difflib.get_close_matches(key, names, n=3)
    nearest = f" Nearest: {', '.join(near)}." if near else ""
    return f"{nearest} It takes {', '.join(names) or 'nothing'}."


def check(
    given: Mapping[str, Any],
    hints: Mapping[str, Any],
    name: str,
    error: type[SparsifyError],
    told: Mapping[str, str] | None = None,
) -> None:
    """Check values against annotations.

    Args:
        given: values by parameter.
        hints: annotations by parameter; a parameter without an annotation may have any value.
        name: name of the function, for the message.
        error: class of the error.
        told: messages by parameter; see `checked`.

    Raises:
        SparsifyError: Of the given class, for the first value that does not fit.
    """
    for key, value in given.items():
        if key not in hints or key == "self" or fits(value, hints[key]):
            continue
        if told and key in told:
            raise error(told[key].format(name=name, found=found(value)))
        advice = f" Write [{value!r}]." if isinstance(value, str) and "list" in wanted(hints[key]) else ""
        raise error(f"{name}: {key} should be {wanted(hints[key])}, found {found(value)}.{advice}")


def found(value: object) -> str:
    """Describe a value in a few words, for a message."""
    if isinstance(value, str | int | float | None):
        return repr(value)[:80]
    if isinstance(value, list | tuple) and all(isinstance(item, str | int | float | None) for item in value):
        return repr(value)[:80]
    if isinstance(value, list | tuple) and value:
        return f"a {type(value).__name__} of {found(value[0])}"
    if isinstance(value, types.FunctionType):
        return f"the function {value.__name__}"
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def fits(value: object, hint: Any) -> bool:
    """Return whether a value fits an annotation; True for annotations that cannot be checked."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return LATER in hint.__metadata__ or fits(value, inner[0])
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return isinstance(value, str | int | None) and value in inner
    if origin is type:
        return isinstance(value, type) and (not isinstance(inner[0], type) or issubclass(value, inner[0]))
    if origin in (tuple, list, collections.abc.Sequence):
        of = inner[0] if inner else Any
        return isinstance(value, list | tuple) and all(fits(item, of) for item in value)
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if origin is collections.abc.Callable or getattr(hint, "_is_protocol", False):
        return callable(value) and not isinstance(value, type)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    kind = origin or hint
    return isinstance(value, kind) if isinstance(kind, type) else True


def wanted(hint: Any) -> str:
    """Describe in words which values fit an annotation."""
    return " or ".join(dict.fromkeys(_words(hint)))


_WORDS: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    str: "a text",
    bool: "True or False",
    type(None): "None",
    None: "None",
    os.PathLike: "a path",
}


def _words(hint: Any) -> Iterator[str]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        yield from _words(inner[0])
    elif origin in (typing.Union, types.UnionType):
        for one in inner:
            yield from _words(one)
    elif origin is typing.Literal:
        yield from map(repr, inner)
    elif origin in (tuple, list, collections.abc.Sequence):
        yield f"a list of {_plural(wanted(inner[0])) if inner else 'values'}"
    elif origin is collections.abc.Mapping:
        yield "a mapping" + (f" of {_plural(wanted(inner[0]))} to {_plural(wanted(inner[1]))}" if inner else "")
    elif origin is collections.abc.Callable or getattr(hint, "_is_protocol", False):
        yield "a function"
    elif (origin or hint) in _WORDS:
        yield _WORDS[origin or hint]
    else:
        yield f"a {getattr(origin or hint, '__name__', str(hint))}"


def _plural(words: str) -> str:
    return {"a text": "texts", "a number": "numbers", "a whole number": "whole numbers"}.get(
        words, words.removeprefix("a ")
    )


@functools.cache
def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function, or of the fields of a class, by name.

    Raises:
        NameError: If an annotation uses a name that its module does not have.
    """
    return typing.get_type_hints(function, include_extras=True)
