"""Methods by name or by ``file.py:function``, for recipes and the command. A wrapper is written around its base: ``cigl(agent(rigl))``."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sparsify.arguments import checked
from sparsify.errors import RecipeError
from sparsify.methods.adversarial import adversarial
from sparsify.methods.agent import agent
from sparsify.methods.averaged import averaged
from sparsify.methods.balancing_act import balancing_act
from sparsify.methods.base import Method
from sparsify.methods.calirare import calirare
from sparsify.methods.cigl import cigl
from sparsify.methods.class_weighted import class_weighted
from sparsify.methods.dense import dense
from sparsify.methods.distilled import distilled
from sparsify.methods.dst_ee import dst_ee
from sparsify.methods.focal import dual_focal, focal
from sparsify.methods.gradual_magnitude import gmp
from sparsify.methods.granet import granet
from sparsify.methods.iterative_magnitude import imp
from sparsify.methods.itop import itop
from sparsify.methods.label_smoothing import label_smoothing, maxsup
from sparsify.methods.logit_norm import logit_norm
from sparsify.methods.mbls import acls, mbls
from sparsify.methods.mixup import mixup, rankmixup
from sparsify.methods.mmce import mmce
from sparsify.methods.moon import moon, widened
from sparsify.methods.ndsnn import ndsnn
from sparsify.methods.one_shot import one_shot
from sparsify.methods.own import is_own, label, own, parameters, wraps
from sparsify.methods.per_step import per_step
from sparsify.methods.ps_kd import ps_kd
from sparsify.methods.rigl import rigl
from sparsify.methods.sparse_evolutionary import set as sparse_evolutionary
from sparsify.methods.srigl import srigl
from sparsify.methods.static_random import static_random
from sparsify.methods.weight_dropout import weight_dropout
from sparsify.parts.allocation import ALLOCATIONS
from sparsify.registry import Registry, not_loaded

_METHODS: dict[str, Callable[..., Method]] = {
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
    "ndsnn": ndsnn,
    "imp": imp,
}
_WRAPPERS: dict[str, Callable[..., Method]] = {
    "averaged": averaged,
    "weight-dropout": weight_dropout,
    "cigl": cigl,
    "agent": agent,
    "moon": moon,
    "widened": widened,
    "adversarial": adversarial,
    "distilled": distilled,
    "label-smoothing": label_smoothing,
    "maxsup": maxsup,
    "focal": focal,
    "dual-focal": dual_focal,
    "mbls": mbls,
    "acls": acls,
    "mmce": mmce,
    "logit-norm": logit_norm,
    "balancing-act": balancing_act,
    "class-weighted": class_weighted,
    "calirare": calirare,
    "mixup": mixup,
    "rankmixup": rankmixup,
    "ps-kd": ps_kd,
    "per-step": per_step,
}
METHODS: Registry[Callable[..., Method]] = Registry("method", RecipeError, _METHODS)
"""Functions that return a method; their parameters are its options."""
WRAPPERS: Registry[Callable[..., Method]] = Registry("wrapper", RecipeError, _WRAPPERS)
"""Functions that take a method as their first argument and return a method."""


def layers(text: str) -> tuple[str, ...]:
    """Return the names in a method's spelling, outermost first: ``cigl(agent(rigl))`` gives cigl, agent, rigl.

    Raises:
        RecipeError: If the text is not a method inside wrappers, or a name is unknown or in the wrong place.
    """
    names = re.split(r"\s*\(\s*", text.strip().rstrip(") "))
    closed = re.sub(r"[^)]", "", text)
    if not re.fullmatch(r"[^()]*(\([^()]*)*[)\s]*", text) or len(closed) != len(names) - 1:
        raise RecipeError(f"cannot read the method {text!r}. Write a name, or wrappers around one: cigl(agent(rigl)).")
    *wrappers, base = names
    for name in wrappers:
        _check_wrapper(name, text)
    _check_base(base)
    labels = [label(name) for name in names]
    for name in labels:
        if labels.count(name) > 1:
            other = ", or give one of the functions another name" if any(map(is_own, names)) else ""
            raise RecipeError(f"{text!r} has {name!r} twice. Write each wrapper once{other}.")
    return tuple(names)


def _check_wrapper(name: str, text: str) -> None:
    if is_own(name):
        if not wraps(own(name)):
            raise RecipeError(
                f"{name!r} in {text!r} is not a wrapper: its function does not take ``base`` first. Wrappers: {', '.join(WRAPPERS)}."
            )
    elif name in METHODS:
        raise RecipeError(f"{name!r} in {text!r} is not a wrapper. Wrappers: {', '.join(WRAPPERS)}.")
    elif name not in WRAPPERS:
        raise RecipeError(f"there is no wrapper {name!r}.{_near(name, WRAPPERS)}")


def _check_base(name: str) -> None:
    if wraps(own(name)) if is_own(name) else name in WRAPPERS:
        raise RecipeError(
            f"{name!r} wraps another method: write {name}(rigl), or around another of {', '.join(METHODS)}."
        )
    if not is_own(name) and name not in METHODS:
        raise RecipeError(f"there is no method {name!r}.{_near(name, METHODS)}")


def inner(text: str) -> str | None:
    """Return what is inside the outermost wrapper: ``agent(rigl)`` for ``cigl(agent(rigl))``; None for a method without wrappers.

    Raises:
        RecipeError: As for `layers`.
    """
    _, *names = layers(text)
    return "(".join(names) + ")" * (len(names) - 1) if names else None


def options(name: str) -> dict[str, Any]:
    """Return the options of a method or wrapper with their defaults (`inspect.Parameter.empty` if required).

    Raises:
        RecipeError: If a function of the user's own cannot be loaded.
    """
    function = _function(name)
    return {p.name: p.default for p in parameters(function)[1 if wraps(function) else 0 :]}


def _function(name: str) -> Callable[..., Method]:
    if is_own(name):
        return own(name)
    return METHODS[name] if name in METHODS else WRAPPERS[name]


@checked(RecipeError)
def build(name: str, given: Mapping[str, Any]) -> Method:
    """Build a method from its spelling and options.

    Args:
        name: ``rigl``, or with wrappers ``cigl(agent(rigl))``. Each part may be a function of the user's own: ``cigl(my.py:mest)``.
        given: options of the innermost method by name, and options of any layer as a mapping under the layer's name (for a function of
            the user's own, the function's name): ``{"density": 0.1, "agent": {"gamma": 0.2}}``. ``allocation`` may be a name.

    Raises:
        RecipeError: If a method or an option is unknown, a required option is missing, two wrappers exclude each other, or a function of
            the user's own fails or does not return a method.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.build("cigl(agent(rigl))", {"density": 0.1, "agent": {"gamma": 0.05}}).name
        'cigl(agent(rigl))'
    """
    *wrappers, base = layers(name)
    tables = _tables(name, (*wrappers, base), given)
    method = _function(base)(**_checked(base, tables[label(base)]))
    for wrapper in reversed(wrappers):
        method = _function(wrapper)(method, **_checked(wrapper, tables[label(wrapper)]))
    return method


def _tables(text: str, names: tuple[str, ...], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options of each layer, by its label."""
    layered = {label(name): options(name) for name in names}
    base = label(names[-1])
    tables: dict[str, dict[str, Any]] = {name: {} for name in layered}
    known = [*layered[base], *(f"{name}.{key}" for name, keys in layered.items() for key in keys)]
    for key, value in given.items():
        if isinstance(value, Mapping):
            if key not in tables:
                raise RecipeError(
                    f"method {text!r} has no layer {key!r} to give options to. It has {', '.join(layered)}."
                )
            table, pairs = key, dict(value)
        else:
            table, pairs = base, {key: value}
        for option, content in pairs.items():
            spelt = option if table == base else f"{table}.{option}"
            if option not in layered[table]:
                owners = [f"{name}.{option}" for name, keys in layered.items() if option in keys]
                near = owners or difflib.get_close_matches(spelt, known, n=3)
                raise RecipeError(
                    f"method {table!r} has no option {option!r}. Nearest: {', '.join(near) or 'none'}. "
                    f"All: {', '.join(layered[table]) or 'none'}."
                )
            if option in tables[table]:
                raise RecipeError(f"option {option!r} of {table!r} is given twice, with and without its layer's name.")
            tables[table][option] = content
    return tables


def _checked(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(given)
    missing = [
        key for key, default in options(name).items() if default is inspect.Parameter.empty and key not in values
    ]
    if missing:
        raise RecipeError(f"method {name!r} needs {', '.join(missing)}.")
    for key in [key for key in ("allocation", "initial_allocation") if isinstance(values.get(key), str)]:
        values[key] = ALLOCATIONS.find(values[key])
    return values


def _near(name: str, among: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [*METHODS, *WRAPPERS], n=3)
    return f" Nearest: {', '.join(near) or 'none'}. All: {', '.join(among)}; or write file.py:function.{not_loaded()}"
