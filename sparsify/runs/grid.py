"""A grid: methods x sparsities x seeds, where each cell is a recipe. The dense baseline and the base of each method are cells too."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from sparsify.errors import RecipeError, SparsifyError
from sparsify.methods.own import label
from sparsify.methods.registry import inner, layers, options
from sparsify.runs.keys import from_tables, spelt, to_tables
from sparsify.runs.pairs import merged, parse_pairs
from sparsify.runs.recipe import Fraction, Recipe, check_keys, parse_recipe
from sparsify.runs.toml import read_toml, to_toml

DENSE = "dense"
LISTED = {
    "method": "methods: grid.methods",
    "sparsity": "sparsities: grid.sparsities",
    "seed": "seeds: grid.seeds",
    "baseline": "baseline: the dense model is always in a grid",
    "teacher": "teacher: a key of the variants that learn from one",
}
"""Recipe keys that differ between the cells of a grid, and where they are set."""
OVERRIDES = sorted({"method", *(f.name for f in dataclasses.fields(Recipe))} - {"sparsity", "seed", "baseline"})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        name: name of the method or variant, which is a row of the table.
        bases: names of the rows that it is compared with; none for the dense baseline.
        sparsity: inactive fraction; None if the method has no masks, so that one cell serves for all sparsities.
        recipe: the resolved recipe of the run.
    """

    name: str
    bases: tuple[str, ...]
    sparsity: float | None
    seed: int
    recipe: Recipe

    def __str__(self) -> str:
        return " ".join((self.name, *([] if self.sparsity is None else [f"{self.sparsity:g}"]), f"seed {self.seed}"))

    @property
    def folder(self) -> str:
        """Name of the run's folder, with only letters, digits, ``.``, ``_`` and ``-``."""
        return re.sub(r"[^\w.]+", "-", str(self), flags=re.ASCII).strip("-.")


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Lists:
    """The ``[grid]`` table.

    Attributes:
        methods: rows of the table: methods as a recipe names them, ``file.py:function`` among them, wrappers as ``wrapper(base)``, or
            names of variants.
        sparsities: inactive fractions, each in (0, 1).
        seeds: seeds of data order, masks and growth; every row is trained with each.
        bases: by name, the row or rows that a row is compared with. The default is the method inside a wrapper, the method of a variant, or
            the dense baseline.
        variants: by name, a variant's own recipe keys in their tables, including ``method.name``.
    """

    methods: Annotated[list[str], Field(min_length=1)]
    sparsities: Annotated[list[Fraction], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]
    bases: dict[str, str | Annotated[list[str], Field(min_length=1)]] = Field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """Recipe keys that all cells share, and the lists. Made by `parse_grid`.

    Attributes:
        common: resolved keys of a `Recipe`, without those of `LISTED`. ``method_options`` go to every method that has them; a table under
            a method's name goes only to that method, wrapped or not.
    """

    common: Mapping[str, Any]
    lists: Lists

    def to_toml(self) -> str:
        """Return the resolved grid; `parse_grid` reads it back unchanged."""
        lists = dataclasses.asdict(self.lists)  # type: ignore[arg-type]
        lists["variants"] = {name: to_tables(own) for name, own in self.lists.variants.items()}
        return to_toml({**to_tables(self.common), "grid": lists})

    def names(self) -> list[str]:
        """Return the rows: the dense baseline, then the listed ones, each after the rows that it is compared with."""
        order: list[str] = []
        for name in (DENSE, *self.lists.methods):
            self._place(name, order, ())
        return order

    def _place(self, name: str, order: list[str], above: tuple[str, ...]) -> None:
        if name in above:
            raise RecipeError(f"grid.bases forms a circle: {' < '.join((*above, name))}. Remove one of these bases.")
        if name in order:
            return
        for base in self.bases(name):
            self._place(base, order, (*above, name))
        order.append(name)

    def bases(self, name: str) -> tuple[str, ...]:
        """Return the rows that a row is compared with; none for the dense baseline.

        Raises:
            RecipeError: If there is no such row.
        """
        if name == DENSE:
            return ()
        if name in self.lists.bases:
            given = self.lists.bases[name]
            return (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))
        method = self.method(name)
        try:
            return (method if method != name else inner(method) or DENSE,)
        except RecipeError as error:
            raise RecipeError(f"grid row {name!r}: {error}") from error

    def cells(self) -> list[Cell]:
        """Return all cells, seed by seed, so that a grid that stops early holds complete pairs.

        Raises:
            RecipeError: If recipes are invalid (the message names all their rows), or two cells are the same run.
        """
        problems: dict[str, None] = {}
        found = [cell for seed in self.lists.seeds for name in self.names() for cell in self._row(name, seed, problems)]
        if problems:
            raise RecipeError(" ".join(problems))
        for what, key in (("the same run", lambda cell: cell.recipe.hash()), ("one folder", lambda cell: cell.folder)):
            first: dict[str, Cell] = {}
            for cell in found:
                other = first.setdefault(key(cell), cell)
                if other is not cell:
                    raise RecipeError(
                        f"two cells of the grid are {what}: {other} and {cell}. Leave one out, or rename it."
                    )
        return found

    def _row(self, name: str, seed: int, problems: dict[str, None]) -> Iterator[Cell]:
        """Yield the cells of a row; problems with recipes are added to ``problems``."""
        bases = self.bases(name)
        for sparsity in self.lists.sparsities:
            try:
                recipe = self._recipe(name, sparsity, seed)
            except RecipeError as error:
                problems[str(error)] = None
                continue
            if recipe.build_method().density >= 1.0:
                yield Cell(name, bases, None, seed, dataclasses.replace(recipe, sparsity=Recipe().sparsity))  # type: ignore[type-var]
                return
            yield Cell(name, bases, sparsity, seed, recipe)

    def method(self, name: str) -> str:
        """Return the method of a row, as a recipe writes it."""
        return str(self.lists.variants.get(name, {}).get("method", name))

    def _recipe(self, name: str, sparsity: float, seed: int) -> Recipe:
        own, method = dict(self.lists.variants.get(name, {})), self.method(name)
        values = {**self.common, **own, "method": method, "sparsity": sparsity, "seed": seed}
        try:
            shared = shared_options(self.common["method_options"], method)
            values["method_options"] = merged(shared, _flat(own.get("method_options", {}), label(layers(method)[-1])))
            recipe = parse_recipe(None, {**values, "baseline": True})
        except SparsifyError as error:
            raise RecipeError(f"grid row {name!r} at sparsity {sparsity:g}: {error}") from error
        return dataclasses.replace(recipe, baseline=recipe.taught_by_baseline())  # type: ignore[type-var]


def shared_options(given: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Select the options of a grid that apply to one method: plain options of the innermost method, and the tables of its layers.

    A table under the innermost method's name overrides plain options.
    """
    names = layers(method)
    *wrappers, core = map(label, names)
    for name in (*wrappers, core):
        _check_table(given, name, f"[method.options.{name}]")
    plain = {key: value for key, value in given.items() if key in options(names[-1])}
    return {**plain, **given.get(core, {}), **{name: given[name] for name in wrappers if name in given}}


def _flat(given: Mapping[str, Any], core: str) -> dict[str, Any]:
    """Merge the table under the innermost method's name into the plain options of a variant."""
    _check_table(given, core, f"method.options.{core} of a variant")
    return {**{key: value for key, value in given.items() if key != core}, **given.get(core, {})}


def parse_grid(path: Path, pairs: Sequence[str] = ()) -> Grid:
    """Parse a grid from a TOML file and ``key=value`` texts that override it; ``grid.seeds=0,1`` overrides a list.

    Raises:
        RecipeError: If the file is missing or malformed, a key is unknown (the message names the nearest) or set by the lists, a list is
            empty, has duplicates or names an unknown method, or the recipe of a cell is invalid.
    """
    values = read_toml(path)
    lists = values.pop("grid", None)
    if not isinstance(lists, dict):
        raise RecipeError(
            f"{path} has no [grid]. It names methods, sparsities and seeds, e.g. methods = ['set', 'rigl'], sparsities = [0.9, 0.95], "
            f"seeds = [0, 1, 2]."
        )
    lists |= _list_pairs([pair for pair in pairs if pair.startswith("grid.")])
    given = parse_pairs([pair for pair in pairs if not pair.startswith("grid.")])
    values = from_tables(values, "the recipe of a grid")
    _check_table(values, "method_options", "[method.options]")
    values = merged({"threads": 1, "method_options": {}, **values}, given)
    for key, where in LISTED.items():
        if key in values:
            raise RecipeError(f"the recipe of a grid has no key {spelt(key)!r}, but {where}.")
    check_keys("the recipe of a grid", values, [key for key in OVERRIDES if key != "method"])
    check_keys("[grid]", lists, [f.name for f in dataclasses.fields(Lists)])  # type: ignore[arg-type]
    grid = Grid(_common(values), _lists(lists))
    grid.cells()
    _check_options(grid)
    return grid


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Override values with others; tables are merged key by key."""
    found = {**values, **over}
    both = (key for key in over if isinstance(values.get(key), Mapping) and isinstance(over[key], Mapping))
    return {**found, **{key: _merged(values[key], over[key]) for key in both}}


def _check_table(owner: Mapping[str, Any], key: str, name: str) -> None:
    if not isinstance(owner.get(key, {}), Mapping):
        raise RecipeError(f"{name} should be a table of options, found {owner[key]!r}.")


def _common(values: Mapping[str, Any]) -> dict[str, Any]:
    resolved = parse_recipe(None, {**values, "method": DENSE, "method_options": {}})
    found = {f.name: getattr(resolved, f.name) for f in dataclasses.fields(Recipe) if f.name not in LISTED}  # type: ignore[arg-type]
    return {**found, "method_options": dict(values["method_options"])}


def _lists(values: Mapping[str, Any]) -> Lists:
    try:
        lists = TypeAdapter(Lists).validate_python(_with_fields(dict(values)))
    except ValidationError as error:
        problems = [f"grid.{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in error.errors()]
        raise RecipeError("the grid does not hold: " + "; ".join(problems) + ".") from error
    for name in ("methods", "sparsities", "seeds"):
        items = getattr(lists, name)
        twice = next((item for index, item in enumerate(items) if item in items[:index]), None)
        if twice is not None:
            raise RecipeError(f"grid.{name} has {twice!r} twice. Each cell is run once; leave one out.")
    for name, keys in lists.variants.items():
        check_keys(f"variant {name!r} of the grid", keys, OVERRIDES)
        _check_table(keys, "method_options", f"method.options of variant {name!r}")
        if name == DENSE:
            raise RecipeError("'dense' is the baseline and cannot be a variant. Give the variant another name.")
    return lists


def _check_options(grid: Grid) -> None:
    """Refuse a shared option that no method has, and a variant or base that no row uses."""
    rows = grid.names()
    given = grid.common["method_options"]
    parts = [layers(grid.method(name)) for name in rows]
    tables = {label(name) for names in parts for name in names}
    plain = {key for names in parts for key in options(names[-1])}
    check_keys("[method.options], of all methods of the grid together,", given, sorted(plain | tables))
    for table, named in (("variants", grid.lists.variants), ("bases", grid.lists.bases)):
        unused = [name for name in named if name not in rows]
        if unused:
            raise RecipeError(
                f"grid.{table} has {unused[0]!r}, which is not a row of the grid. Add it to grid.methods, or leave it out. "
                f"Rows: {', '.join(rows)}."
            )


def _with_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Convert the keys of variants to fields of a recipe."""
    variants = values.get("variants", {})
    if isinstance(variants, Mapping):
        values["variants"] = {
            name: from_tables(own, f"variant {name!r} of the grid") if isinstance(own, Mapping) else own
            for name, own in variants.items()
        }
    return values


def _list_pairs(pairs: Sequence[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for pair in pairs:
        key, equals, text = pair.removeprefix("grid.").partition("=")
        if not equals or key not in {"methods", "sparsities", "seeds"}:
            raise RecipeError(f"--set {pair!r} should be grid.methods=a,b, grid.sparsities=0.9,0.95 or grid.seeds=0,1.")
        items = [item.strip() for item in text.split(",") if item.strip()]
        kind = {"methods": str, "sparsities": float, "seeds": int}[key]
        try:
            found[key] = [kind(item) for item in items]
        except ValueError as error:
            raise RecipeError(f"--set {pair!r}: {key} are numbers separated by commas.") from error
    return found
