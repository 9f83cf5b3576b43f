"""Makes int8 forms of fp32 models, and times them against the fp32 models in interleaved runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsify.errors import ExportError
from sparsify.exporters.graphs import watched
from sparsify.exporters.grouped_linears import find_grouped_linears
from sparsify.exporters.int8_dense import dense_int8, dense_layers, in_groups, products
from sparsify.exporters.int8_grouped import write_grouped_int8
from sparsify.exporters.int8_layers import time_layers
from sparsify.exporters.int8_samples import Samples
from sparsify.exporters.skeleton import Written
from sparsify.timing import Array, Batches, Feeds, run_over, session_of, times

MOST_VALUES = 65_536
"""Number of values of a tensor kept per batch, in addition to its minimum and maximum, to choose a quantization range."""
MIXED = "mixed, by layer"
"""Name of the form that combines the fastest form of each layer."""
REDUCED = "7-bit weights"
"""Added to the names of forms whose grouped layers have 7-bit weights and int8 activations; see `sparsify.exporters.int8_grouped`."""
FAILED = "it could not be made"
Lower = Callable[[tuple[str, ...]], ir.Model]
"""Returns the fp32 model with grouped layers; layers with the given weight names stay dense."""
Made = tuple[ir.Model, dict[str, str]]
"""A model, and the form of each layer by weight name."""


@dataclass(frozen=True)
class Trial:
    """A form of the program that was timed: its name, milliseconds per call, and the form of each layer by weight name."""

    name: str
    milliseconds: float
    layers: Mapping[str, str]

    @property
    def integers(self) -> int:
        """The number of layers that are computed in int8."""
        return sum(form.startswith("int8") for form in self.layers.values())


@dataclass(frozen=True)
class Tried:
    """Models and their timings.

    Attributes:
        found: the fp32 models and their int8 forms, the fastest first; timed in interleaved runs.
        layers: milliseconds of each layer run separately, by weight name and form.
        failed: forms that could not be made or run, each with the reason.
    """

    found: tuple[tuple[Trial, ir.Model], ...]
    layers: dict[str, dict[str, float]]
    failed: dict[str, str]


def quantize(
    models: Mapping[str, ir.Model],
    samples: Samples,
    *,
    lower: Lower | None = None,
    written: Written = lambda model: model,
    threads: int = 1,
) -> Tried:
    """Make int8 forms of the given fp32 models, and time all of them and their single layers.

    Args:
        models, samples, lower, written, threads: as for `sparsify.exporters.int8.int8_file`.
    """
    maker, layers = FormMaker(samples.calibration), dict[str, dict[str, float]]()
    for form, model in models.items():
        maker.made[f"{form}, fp32"] = model, forms(model, form)
        for integers in ({"dense"}, {"grouped"}, {"dense", "grouped"}):
            kinds = {name: ("int8" if f.split()[1] in integers else "fp32") for name, f in forms(model, form).items()}
            maker.add(f"{form}, {' and '.join(sorted(integers))} layers int8", model, form, kinds)
    with maker.recording_failure(MIXED):
        layers = time_layers(models, samples.timed, written=written, threads=threads)
        best = {weight: min(timed, key=lambda key: timed[key]) for weight, timed in layers.items()}
        dense = tuple(
            weight
            for weight, form in best.items()
            if form.endswith("dense") and any("grouped" in f for f in layers[weight])
        )
        form = "grouped" if "grouped" in models else "dense"
        base = lower(dense) if lower and dense else models[form]
        kinds = {weight: best.get(weight, "fp32").split()[0] for weight in forms(base, form)}
        maker.add(MIXED, base, form, kinds)
    files = dict[str, tuple[ir.Model, Feeds]]()
    for name, (model, shown) in maker.made.items():
        if not any(form.startswith("int8") for form in shown.values()):
            files[name] = written(model), samples.timed
            continue
        with maker.recording_failure(name):
            file = written(model)
            run_over(session_of(file, threads=1), [samples.timed])
            files[name] = file, samples.timed
    measured = times(files, threads=threads)
    trials = [(Trial(name, measured[name], maker.made[name][1]), maker.made[name][0]) for name in files]
    return Tried(tuple(sorted(trials, key=lambda pair: pair[0].milliseconds)), layers, maker.failed)


class FormMaker:
    """Makes each int8 form of a model once, and records why a form could not be made."""

    def __init__(self, calibration: Batches) -> None:
        self.made: dict[str, Made] = {}
        self.failed: dict[str, str] = {}
        self._calibration = calibration
        self._asked: list[dict[str, str]] = []

    @contextmanager
    def recording_failure(self, name: str) -> Generator[None]:
        """Record an exception of the block under ``name`` instead of raising it, so that the other forms are still made."""
        try:
            yield
        except Exception as error:
            text = str(error) if isinstance(error, ExportError) else f"{type(error).__name__}: {error}"
            self.failed[name] = f"{FAILED}: {text}"

    def add(self, name: str, model: ir.Model, form: str, kinds: Mapping[str, str]) -> None:
        """Quantize the layers of kind ``int8`` with 8-bit and with 7-bit weights, unless a model with the same layer forms exists."""
        for reduce_range in (False, True):
            shown = _shown(model, form, kinds, reduce_range=reduce_range)
            title = f"{name}, {REDUCED}" if any(REDUCED in text for text in shown.values()) else name
            if shown not in (*self._asked, *(other for _, other in self.made.values())):
                self._asked.append(shown)
                with self.recording_failure(title):
                    self.made[title] = form_in_int8(model, form, kinds, self._calibration, reduce_range=reduce_range)


def form_in_int8(
    model: ir.Model, form: str, kinds: Mapping[str, str], calibration: Batches, *, reduce_range: bool = False
) -> Made:
    """Return the model with the layers of kind ``int8`` quantized, and the form of each layer.

    Args:
        model: an fp32 model.
        form: ``dense`` or ``grouped``.
        kinds: ``int8`` or ``fp32`` by weight name.
        calibration: samples on which ranges are observed.
        reduce_range: use 7-bit weights in grouped layers.
    """
    shown = _shown(model, form, kinds, reduce_range=reduce_range)
    layers = find_grouped_linears(model.graph) if form == "grouped" else ()
    grouped = [layer for layer in layers if kinds.get(layer.name) == "int8"]
    dense = {node for node, weight in dense_layers(model).items() if kinds.get(weight) == "int8"}
    if grouped:
        names = sorted({str(value.name) for layer in grouped for value in (layer.source, layer.result)})
        weights = {layer.name for layer in grouped}
        model = write_grouped_int8(model, weights, observe(model, names, calibration), reduce_range=reduce_range)
    return (dense_int8(model, calibration, dense) if dense else model), shown


def quantizable(model: ir.Model, form: str) -> tuple[str, ...]:
    """Return the weight names of the layers of an fp32 model that can be quantized, in graph order."""
    can = {layer.name for layer in find_grouped_linears(model.graph)} if form == "grouped" else set[str]()
    can |= set(dense_layers(model).values())
    return tuple(weight for weight in forms(model, form) if weight in can)


def _shown(model: ir.Model, form: str, kinds: Mapping[str, str], *, reduce_range: bool) -> dict[str, str]:
    """Return the form of each layer by weight name after the layers of kind ``int8`` are quantized, as far as they can be."""
    shown = forms(model, form)
    for weight in quantizable(model, form):
        if kinds.get(weight) == "int8":
            reduced = reduce_range and shown[weight].endswith("grouped")
            shown[weight] = shown[weight].replace("fp32", "int8") + (f", {REDUCED}" if reduced else "")
    return shown


def forms(model: ir.Model, kind: str) -> dict[str, str]:
    """Return ``fp32 dense`` or ``fp32 grouped`` for each layer of an fp32 model, by weight name."""
    layers = find_grouped_linears(model.graph) if kind == "grouped" else ()
    found = {layer.name: "fp32 grouped" for layer in layers}
    for node, name, weight in products(model.graph):
        found.setdefault(name, f"fp32 {'grouped' if in_groups(node, weight) else 'dense'}")
    return found


def observe(model: ir.Model, names: list[str], calibration: Batches) -> dict[str, list[Array]]:
    """Return the values of tensors on the calibration data, one array per batch. Large ones are subsampled; their extremes are kept."""
    session = session_of(watched(model, names), threads=1)
    found: dict[str, list[Array]] = {name: [] for name in names}
    for feeds in calibration:
        for name, value in zip(names, session.run(names, dict(feeds)), strict=True):
            found[name].append(_selected(np.asarray(value)))
    return found


def _selected(values: Array) -> Array:
    if values.size <= MOST_VALUES:
        return values
    flat = values.reshape(-1)
    return np.concatenate([flat[:: -(-values.size // MOST_VALUES)], [flat.min(), flat.max()]])
