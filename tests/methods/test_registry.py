"""Methods by name: options, and what is wrong with a request."""

from __future__ import annotations

import inspect

import pytest

from sparsify.errors import RecipeError
from sparsify.methods import METHODS, WRAPPERS, build
from sparsify.methods.registry import inner, layers, options
from sparsify.parts.allocation import lamp


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_built_from_its_name_and_bears_it(name):
    needed = {key: 0.25 for key, default in options(name).items() if default is inspect.Parameter.empty}
    method = build(name, needed)
    assert method.name == name
    assert (inspect.getdoc(METHODS[name]) or "").splitlines()[0].endswith((".", ").", ":")) or name == "dense"


def test_an_allocation_may_be_a_name():
    assert build("gmp", {"density": 0.5, "allocation": "lamp"}).allocation is lamp


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_is_built_around_a_method_and_says_so(name):
    assert build(f"{name}(rigl)", {"density": 0.25}).name == f"{name}(rigl)"


def test_layers_are_read_outermost_first():
    assert layers("rigl") == ("rigl",)
    assert layers(" cigl( averaged (rigl) ) ") == ("cigl", "averaged", "rigl")


@pytest.mark.parametrize(
    ("text", "within"),
    [
        ("rigl", None),
        ("agent(rigl)", "rigl"),
        ("cigl(agent(rigl))", "agent(rigl)"),
        (" cigl( moon (rigl) ) ", "moon(rigl)"),
    ],
)
def test_what_the_outermost_wrapper_is_around(text, within):
    assert inner(text) == within


def test_options_reach_their_layer():
    given = {"density": 0.25, "update_every": 7, "weight-dropout": {"rate": 0.3}, "averaged": {"start_at": 0.9}}
    method = build("averaged(weight-dropout(rigl))", given)
    assert method.passes[0].rate == 0.3
    assert method.averaging(100).start_at == 90
    assert method.topology(100).when(7) and not method.topology(100).when(8)
    again = build("weight-dropout(rigl)", {"rigl": {"density": 0.25, "update_every": 7}})
    assert again.topology(100).when(7)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("cgil(rigl)", {}, "no wrapper 'cgil'. Nearest: cigl"),
        ("cigl(rgl)", {}, "no method 'rgl'. Nearest: rigl"),
        ("cigl", {}, r"write cigl\(rigl\)"),
        ("rigl(set)", {}, "'rigl' in 'rigl\\(set\\)' is not a wrapper"),
        ("cigl(rigl", {}, "cannot read the method"),
        ("cigl(rigl))", {}, "cannot read the method"),
        ("cigl)rigl(", {}, "cannot read the method"),
        ("cigl(set, rigl)", {}, "no method 'set, rigl'"),
        ("", {}, "no method ''"),
        ("averaged(averaged(rigl))", {}, "has 'averaged' twice"),
        ("averaged(cigl(rigl))", {"density": 0.1}, "averages weights already"),
        ("cigl(moon(rigl))", {"density": 0.1}, "averages weights already"),
        ("moon(widened(rigl))", {"density": 0.1}, "has an unknown class already"),
        ("cigl(rigl)", {"density": 0.1, "rate": 0.2}, "'rigl' has no option 'rate'. Nearest: cigl.rate"),
        ("cigl(rigl)", {"density": 0.1, "cigl": {"raet": 0.2}}, "'cigl' has no option 'raet'. Nearest: cigl.rate"),
        ("cigl(rigl)", {"density": 0.1, "cigl": {"update_every": 2}}, "Nearest: rigl.update_every"),
        ("cigl(rigl)", {"density": 0.1, "averaged": {"start_at": 2}}, "no layer 'averaged' to give options to"),
        ("cigl(rigl)", {"density": 0.1, "rigl": {"density": 0.2}}, "'density' of 'rigl' is given twice"),
        ("cigl(rigl)", {}, "'rigl' needs density"),
        ("rgl", {}, "Nearest: rigl"),
        ("rigl", {}, "needs density"),
        ("rigl", {"density": 0.1, "updat_every": 3}, "Nearest: update_every"),
        ("dense", {"density": 0.1}, "All: none"),
        ("gmp", {"density": 0.1, "allocation": "erl"}, "no allocation 'erl'"),
        ("rigl", {"density": 0.1, "drop_fraction": 1.5}, "between 0.0 and 1.0"),
    ],
)
def test_wrong_requests(name, given, message):
    with pytest.raises(RecipeError, match=message):
        build(name, given)
