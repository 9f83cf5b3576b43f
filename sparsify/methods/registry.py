"""Methods by name, for recipes and the command."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sparsify.errors import RecipeError
from sparsify.methods.base import Method
from sparsify.methods.dense import dense
from sparsify.methods.dst_ee import dst_ee
from sparsify.methods.gradual_magnitude import gmp
from sparsify.methods.granet import granet
from sparsify.methods.iterative_magnitude import imp
from sparsify.methods.itop import itop
from sparsify.methods.one_shot import one_shot
from sparsify.methods.rigl import rigl
from sparsify.methods.sparse_evolutionary import set as sparse_evolutionary
from sparsify.methods.srigl import srigl
from sparsify.methods.static_random import static_random
from sparsify.parts.allocation import ALLOCATIONS

METHODS: dict[str, Callable[..., Method]] = {
    "dense": dense,
    "static": static_random,
    "one-shot": one_shot,
    "gmp": gmp,
    "set": sparse_evolutionary,
    "rigl": rigl,
    "srigl": srigl,
    "itop": itop,
    "dst-ee": dst_ee,
    "granet": granet,
    "imp": imp,
}


def options(name: str) -> dict[str, Any]:
    """Option names of a method with their defaults (`inspect.Parameter.empty` where required)."""
    return {p.name: p.default for p in inspect.signature(METHODS[name]).parameters.values()}


def build(name: str, given: Mapping[str, Any]) -> Method:
    """A method from its name and options; an allocation may be a name.

    Raises:
        RecipeError: If the method or an option is unknown, or a required option is missing.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=3)
        raise RecipeError(
            f"there is no method {name!r}. Nearest: {', '.join(near) or 'none'}. All: {', '.join(METHODS)}."
        )
    known, values = options(name), dict(given)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3)
            raise RecipeError(
                f"method {name!r} has no option {key!r}. Nearest: {', '.join(near) or 'none'}. "
                f"All: {', '.join(known) or 'none'}."
            )
    missing = [key for key, default in known.items() if default is inspect.Parameter.empty and key not in values]
    if missing:
        raise RecipeError(f"method {name!r} needs {', '.join(missing)}.")
    for key in [key for key in ("allocation", "initial_allocation") if isinstance(values.get(key), str)]:
        if values[key] not in ALLOCATIONS:
            raise RecipeError(f"there is no {key} {values[key]!r}; choose one of {', '.join(ALLOCATIONS)}.")
        values[key] = ALLOCATIONS[values[key]]
    return METHODS[name](**values)
