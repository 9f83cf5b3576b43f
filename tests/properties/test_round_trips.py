"""What is printed can be read back: patterns, pipelines, recipes, programs."""

from __future__ import annotations

import dataclasses
import random
import string

import pytest
import torch

from sparsify.ir import Program, trace
from sparsify.parts.patterns import NM, Block, Pattern, Unstructured, parse_pattern
from sparsify.passes import PASSES, Pipeline
from sparsify.recipe import Recipe, parse_recipe
from tests.cases import CASES

SEEDS = range(40)


def drawn_pattern(rng: random.Random) -> Pattern:
    m = rng.randint(2, 32)
    return rng.choice([Unstructured(), NM(rng.randint(1, m - 1), m), Block(rng.randint(1, 64), rng.randint(1, 64))])


@pytest.mark.parametrize("seed", SEEDS)
def test_patterns(seed):
    pattern = drawn_pattern(random.Random(seed))
    assert parse_pattern(str(pattern)) == pattern


def drawn_option(rng: random.Random, kind: str) -> object:
    word = "".join(rng.choices(string.ascii_letters + string.digits + "._*?-", k=rng.randint(1, 12)))
    number = rng.choice([0.1, 1e-7, 0.3333333333333333, 5.0, rng.random()])
    many = tuple("".join(rng.choices(string.ascii_lowercase + ".*", k=5)) for _ in range(rng.randint(1, 3)))
    return {"text": word, "list": many, "whole number": rng.randint(-5, 5), "number": number}.get(
        kind, rng.random() < 0.5
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_pipelines(seed):
    rng, passes = random.Random(seed), []
    for name in rng.choices(list(PASSES), k=rng.randint(1, 5)):
        options = {o.name.replace("-", "_"): drawn_option(rng, o.type) for o in PASSES[name].options()}
        passes.append(PASSES[name](**{key: value for key, value in options.items() if rng.random() < 0.7}))
    pipeline = Pipeline(tuple(passes))
    assert Pipeline.parse(str(pipeline)) == pipeline


def drawn_recipe(rng: random.Random) -> Recipe:
    text = rng.choice(
        ["file.py:f", 'quo"te\\slash', "tab\tnew\nline", "ünïcødé 数字", "a'b", "#no comment", "\x7f\x00"]
    )
    numbers = [rng.random() * 0.98 + 0.01 for _ in range(3)]
    options = {"rigl": {"drop_fraction": numbers[0], "update_every": rng.randint(1, 99)}, "dense": {}, "static": {}}
    method = rng.choice(list(options))
    fields = {
        "model": text,
        "data": text,
        "weights": rng.choice([None, text]),
        "trust_pickle": rng.random() < 0.5,
        "holdout": numbers[1],
        "sparsity": numbers[2],
        "method": method,
        "method_options": options[method],
        "pattern": str(drawn_pattern(rng)) if method == "rigl" else "unstructured",
        "keep_dense": rng.choice([(), ("a.*",), ("a.*", text)]),
        "lr": rng.choice([1e-7, 0.1, 3.0, 1e22]),
        "seed": rng.randint(0, 2**40),
        "early_stop": rng.choice([None, 3]),
        "clip_gradient_norm": rng.choice([None, 0.5]),
        "baseline": rng.random() < 0.5,
    }
    chosen = {key: value for key, value in fields.items() if key in ("method", "method_options") or rng.random() < 0.7}
    if isinstance(pattern := parse_pattern(chosen.get("pattern", "unstructured")), NM):
        chosen["sparsity"] = 1 - pattern.n / pattern.m  # the pattern allows no other
    return parse_recipe(None, chosen)


@pytest.mark.parametrize("seed", SEEDS)
def test_recipes(seed, tmp_path):
    recipe = drawn_recipe(random.Random(seed))
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    again = parse_recipe(path, {})
    assert again == recipe
    assert again.to_toml() == recipe.to_toml()
    assert again.hash() == recipe.hash()
    changed = dataclasses.replace(recipe, seed=recipe.seed + 1)
    assert changed.hash() != recipe.hash()


PIPELINES = ("insert-masks{density=%.2f}", "insert-masks{density=%.2f} | insert-gradient-taps | fold-masks")


@pytest.mark.parametrize("seed", range(6))
def test_programs_to_equal_text_bits_and_bytes(seed, tmp_path):
    rng = random.Random(seed)
    case = rng.choice(CASES)
    program = trace(case.build(), case.args, check=False).eval()
    program = Pipeline.parse(rng.choice(PIPELINES) % rng.uniform(0.2, 0.9))(program)
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    with torch.no_grad():
        next(program.parameters()).view(-1)[:4].copy_(odd)  # every bit counts, not only every number
    program.save(tmp_path / "a.sparsify")
    loaded = Program.load(tmp_path / "a.sparsify")
    assert loaded.text() == program.text()
    mine, theirs = program.state_dict(), loaded.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype
        assert value.numpy().tobytes() == theirs[name].numpy().tobytes(), name
    loaded.save(tmp_path / "b.sparsify")
    assert (tmp_path / "a.sparsify").read_bytes() == (tmp_path / "b.sparsify").read_bytes()
