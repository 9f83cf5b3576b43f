"""What is written is read back: pipelines, recipes, programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

from sparsify.errors import RecipeError
from sparsify.heads import HEADS
from sparsify.ir import Program
from sparsify.methods import METHODS, WRAPPERS
from sparsify.methods.registry import options
from sparsify.parts.allocation import ALLOCATIONS, needs_gradient
from sparsify.passes import PASSES, Option, Pipeline
from sparsify.runs.recipe import Recipe, parse_recipe
from tests.cases import CASES
from tests.properties.steady import steady

NAMES = st.text("abcxyz019_.*?[]-", min_size=1, max_size=12)
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
VALUES = {
    "list": st.lists(NAMES, max_size=3).map(tuple),
    "number": st.floats(0, 1, width=32),
    "whole number": st.integers(0, 2**62),
    "true or false": st.booleans(),
    "text": NAMES,
}


def values(option: Option) -> st.SearchStrategy:
    """What an option may be."""
    if option.name == "pattern":
        return st.sampled_from(
            ["unstructured", "fan-in", "nm:2:4", "block:4x1", "grouped:64", "grouped:8x4:l2:learned"]
        )
    if option.name == "kind":
        return st.sampled_from([*HEADS, "lac:0.95", "knn:5:100", "energy:0.5"])
    if option.name == "sizes":
        return st.lists(st.sampled_from(["N=1", "N=4096", "T=64"]), max_size=3).map(tuple)
    if option.choices:
        return st.sampled_from(
            [key for key in option.choices if key not in ALLOCATIONS or not needs_gradient(ALLOCATIONS[key])]
        )
    if option.within:
        return VALUES[option.type].filter(lambda value: value in option.within)
    return VALUES[option.type]


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Any passes with any options that they take."""
    passes = []
    for cls in draw(st.lists(st.sampled_from(list(PASSES.values())), min_size=1, max_size=4)):
        chosen = [option for option in cls.options() if draw(st.booleans())]
        passes.append(cls(**{o.name.replace("-", "_"): draw(values(o)) for o in chosen}))
    return Pipeline(tuple(passes))


@steady
@given(pipelines())
def test_pipelines(pipeline):
    assert Pipeline.parse(str(pipeline)) == pipeline


FIELDS = {
    "model": TEXT,
    "data": TEXT,
    "weights": st.one_of(st.none(), TEXT),
    "trust_pickle": st.booleans(),
    "holdout": st.floats(0.01, 0.99),
    "image_size": st.one_of(st.none(), st.integers(1, 512)),
    "sparsity": st.floats(0.01, 0.99),
    "keep_dense": st.lists(NAMES, max_size=3).map(tuple),
    "baseline": st.booleans(),
    "epochs": st.integers(1, 10**6),
    "optimizer": st.sampled_from(["sgd", "adamw"]),
    "lr": st.floats(1e-30, 1e6),
    "momentum": st.floats(0, 0.999),
    "weight_decay": st.floats(0, 1),
    "schedule": st.sampled_from(["cosine", "cosine-tail", "step", "one-cycle", "constant"]),
    "clip_gradient_norm": st.one_of(st.none(), st.floats(1e-3, 1e3)),
    "seed": st.integers(0, 2**40),
}


@steady
@given(st.fixed_dictionaries({}, optional=FIELDS), st.sampled_from([*METHODS]), st.data())
def test_recipes(tmp_path_factory, values, method, data):
    given_options = _options(method, data)
    if method == "srigl":
        values = {**values, "pattern": "fan-in"}  # it trains no other
    wrapper = data.draw(st.sampled_from([None, *WRAPPERS]))
    if wrapper:
        method, given_options = f"{wrapper}({method})", {**given_options, wrapper: _options(wrapper, data)}
    if wrapper == "distilled":
        values = {**values, **data.draw(st.sampled_from([{"baseline": True}, {"teacher": "dense.sparsify"}]))}
    try:
        recipe = parse_recipe(None, {**values, "method": method, "method_options": given_options})
    except RecipeError:  # options out of range, which are shown to be refused elsewhere
        reject()
    path: Path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(recipe.to_toml())
    again = parse_recipe(path, {})
    assert again.to_toml() == recipe.to_toml() and again.hash() == recipe.hash()
    assert again == recipe or not given_options.get(wrapper, True)


def _options(method, data):
    given_options = {}
    for name, default in options(method).items():
        if name in ("density", "pattern", "keep_dense") or not data.draw(st.booleans()):
            continue
        if name == "allocation":
            given_options[name] = data.draw(
                st.sampled_from([key for key, found in ALLOCATIONS.items() if not needs_gradient(found)])
            )
        elif isinstance(default, bool):
            given_options[name] = data.draw(st.booleans())
        elif "%" in str(default):  # a duration
            given_options[name] = data.draw(st.one_of(st.integers(1, 999), st.floats(0.01, 0.99), st.just("75%")))
        elif isinstance(default, float):
            given_options[name] = data.draw(st.floats(0.0, 1.0))
        elif isinstance(default, int):
            given_options[name] = data.draw(st.integers(1, 999))
    return given_options


def test_every_recipe_key_is_drawn_or_a_choice_of_its_own():
    known = {field.name for field in dataclasses.fields(Recipe)}  # type: ignore[arg-type]
    assert set(FIELDS) <= known


STEPS = [
    "insert-masks{density=0.4}",
    "insert-gradient-taps",
    "attach-calibration-head",
    "eliminate-dead-code",
    "fold-masks",
    "deploy",
    "fold-batch-norm",
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_programs_after_every_pass_and_passes_after_every_file(case, tmp_path):
    program = case.trace().eval()
    for index, step in enumerate(STEPS):
        program = Pipeline.parse(step)(program)
        file = tmp_path / f"{index}.sparsify"
        program.save(file)
        loaded = Program.load(file)
        assert loaded.text() == program.text()
        assert loaded.state_dict().keys() == program.state_dict().keys()
        assert all(torch.equal(loaded.state_dict()[key], value) for key, value in program.state_dict().items())
        for name, value in program.outputs(*case.args).items():
            assert torch.equal(loaded.outputs(*case.args)[name], value)
        for later in STEPS[index + 1 : index + 2]:  # what comes next does not see the detour through the file
            assert Pipeline.parse(later)(loaded).text() == Pipeline.parse(later)(program).text()
