"""int8 files: the fastest of several forms of one program, by timed trials on this machine, that agrees with the program.

Dense layers are quantized by `sparsify.exporters.int8_dense`, grouped linear layers by `sparsify.exporters.int8_grouped`, grouped
convolutions not at all: their int8 kernels are slower than their fp32 ones. Ranges come from calibration data. A trial of every layer
alone (`sparsify.exporters.int8_layers`) proposes a mixed form; whole files, it among them, are then timed in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from sparsify.errors import ExportError
from sparsify.exporters.acceptance import judge
from sparsify.exporters.grouped_linears import View, find_grouped_linears, weight_name
from sparsify.exporters.int8_dense import dense_int8, dense_layers, in_groups
from sparsify.exporters.int8_grouped import write_grouped_int8
from sparsify.exporters.int8_layers import time_layers
from sparsify.exporters.trials import Array, Feeds, Written, batches, fixed_batch, session_of, times, values_of
from sparsify.parts import metrics
from sparsify.parts.calibrators import fit_temperature, fit_vector_scaling

MOST_VALUES = 65_536
"""Values of a tensor that are kept of a batch, and its extremes, to choose a range by."""
REDUCED = "7-bit weights"
"""Grouped layers against activations in int8, see `sparsify.exporters.int8_grouped`."""
Lower = Callable[[tuple[str, ...]], onnx.ModelProto]
"""The fp32 file with grouped layers, but for the given weights, which stay dense."""


@dataclass(frozen=True)
class Trial:
    """One way to compute the program: its name, milliseconds a call, and the form of every layer by its weight."""

    name: str
    milliseconds: float
    layers: Mapping[str, str]

    @property
    def integers(self) -> int:
        """How many layers it computes in int8."""
        return sum(form.startswith("int8") for form in self.layers.values())


@dataclass(frozen=True)
class Int8:
    """How an int8 file came about, and how it agrees with the program on held-out inputs.

    Attributes:
        chosen: the fastest trial that agrees well enough, which is the file.
        trials: all, fastest first.
        layers: milliseconds of each layer alone, by weight and form.
        batch, threads: of the trials.
        decisions: samples whose argmax was compared with the program's; 0 where the outputs are not scores of classes.
        agreed: those whose argmax is the program's.
        largest_error: of the logits, relative to their largest magnitude.
        head: what became of the calibration head: fitted again, kept and why, or none.
        figures: on the held-out samples, where labels were given: NLL and ECE with the program's head (before) and the file's (after).
        clear, clear_agreed: decisions whose margin is well above the file's errors, and those of them that are the program's.
        passed_over: by name of a faster trial, why it is not the file (`sparsify.exporters.acceptance`).
    """

    chosen: Trial
    trials: tuple[Trial, ...]
    layers: Mapping[str, Mapping[str, float]]
    batch: int
    threads: int
    decisions: int
    agreed: int
    largest_error: float
    head: str
    figures: Mapping[str, float] = field(default_factory=dict)
    clear: int = 0
    clear_agreed: int = 0
    passed_over: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples:
    """What int8 needs beside the program.

    Attributes:
        calibration: training inputs by input name, on which ranges are observed.
        held_out: inputs by input name, on which the file is compared with the program.
        logits: the program's for ``held_out``, [N, K].
        labels: int64 [N] of ``held_out``, to fit the calibration head on, or None.
    """

    calibration: Feeds
    held_out: Feeds
    logits: Array
    labels: Array | None = None


def int8_file(
    models: Mapping[str, onnx.ModelProto],
    samples: Samples,
    *,
    lower: Lower | None = None,
    written: Written = lambda model: model,
    batch: int = 1,
    threads: int = 1,
) -> tuple[onnx.ModelProto, Int8]:
    """The fastest of `quantize` that `sparsify.exporters.acceptance` takes for the program, its calibration head fitted again.

    Args:
        models: fp32 files by form: ``dense``, and ``grouped`` where that differs.
        samples: to observe ranges on, to compare with, and to fit on.
        lower: see `Lower`; needed where there is a ``grouped`` file.
        written: what a file becomes before it is written; so it is timed, but not returned.
        batch, threads: of the trials.

    Raises:
        ExportError: If there are too few calibration samples, a file cannot be quantized, or no form agrees.
    """
    found, layers = quantize(models, samples.calibration, lower=lower, written=written, batch=batch, threads=threads)
    trials = tuple(trial for trial, _ in found)
    passed_over: dict[str, str] = {}
    for chosen, model in found:
        have = values_of(model, "logits", samples.held_out).astype(np.float64)
        labels = None if samples.labels is None else samples.labels[: len(have)]
        judged = judge(samples.logits[: len(have)], have, labels)
        if judged.refused:
            passed_over[chosen.name] = judged.refused
            continue
        result = Int8(
            chosen, trials, layers, batch, threads, judged.decisions, judged.agreed, judged.largest_error,
            "kept: the file computes in fp32", clear=judged.clear, clear_agreed=judged.clear_agreed, passed_over=passed_over,
        )  # fmt: skip
        if chosen.integers:
            head, figures = refit_head(model, samples)
            result = replace(result, head=head, figures=figures)
        return model, result
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over.items())
    raise ExportError(
        f"no form of the file agrees with the program, fp32 included ({reasons}). Please report this model."
    )


def quantize(
    models: Mapping[str, onnx.ModelProto],
    calibration: Feeds,
    *,
    lower: Lower | None = None,
    written: Written = lambda model: model,
    batch: int = 1,
    threads: int = 1,
) -> tuple[tuple[tuple[Trial, onnx.ModelProto], ...], dict[str, dict[str, float]]]:
    """The given fp32 files and their int8 forms, timed in turn, the fastest first; and the times of single layers.

    Args:
        models, lower, written, batch, threads: as for `int8_file`.
        calibration: training inputs by input name, each [N, ...].

    Raises:
        ExportError: If there are too few calibration samples, or a file cannot be quantized.
    """
    count, fixed = (
        min((len(values) for values in calibration.values()), default=0),
        fixed_batch(next(iter(models.values()))),
    )
    least = fixed or 2
    if count < least or not 1 <= batch <= count or batch != (fixed or batch):
        raise ExportError(
            f"int8 needs at least {least} calibration samples, and a batch to time with "
            f"{f'of the {fixed} that the file takes' if fixed else 'within them'}; found {count} and batch {batch}."
        )
    made: dict[str, tuple[onnx.ModelProto, dict[str, str]]] = {}
    for form, model in models.items():
        made[f"{form}, fp32"] = model, forms(model, form)
        for integers in ({"dense"}, {"grouped"}, {"dense", "grouped"}):
            kinds = {name: ("int8" if f.split()[1] in integers else "fp32") for name, f in forms(model, form).items()}
            name = f"{form}, {' and '.join(sorted(integers))} layers int8"
            for reduce_range in (False, True):
                _add(made, name, model, form, kinds, calibration, reduce_range=reduce_range)
    layers = time_layers(models, calibration, written=written, batch=batch, threads=threads)
    best = {weight: min(timed, key=lambda key: timed[key]) for weight, timed in layers.items()}
    dense = tuple(
        weight
        for weight, form in best.items()
        if form.endswith("dense") and any("grouped" in f for f in layers[weight])
    )
    form = "grouped" if "grouped" in models else "dense"
    base = lower(dense) if lower and dense else models[form]
    kinds = {weight: best.get(weight, "fp32").split()[0] for weight in forms(base, form)}
    for reduce_range in (False, True):
        _add(made, "mixed, by layer", base, form, kinds, calibration, reduce_range=reduce_range)
    feeds = {name: values[:batch] for name, values in calibration.items()}
    measured = times({name: (written(model), feeds) for name, (model, _) in made.items()}, threads=threads)
    trials = [(Trial(name, measured[name], shown), model) for name, (model, shown) in made.items()]
    return tuple(sorted(trials, key=lambda pair: pair[0].milliseconds)), layers


def forms(model: onnx.ModelProto, kind: str) -> dict[str, str]:
    """Weight -> ``fp32 dense`` or ``fp32 grouped``, of the layers of an fp32 file."""
    view = View(model)
    found = {layer.name: "fp32 grouped" for layer in find_grouped_linears(model)} if kind == "grouped" else {}
    for node in model.graph.node:
        weight = view.constant(node.input[1]) if node.op_type in ("Conv", "Gemm", "MatMul") else None
        if weight is not None and weight_name(node.input[1]) not in found:
            found[weight_name(node.input[1])] = f"fp32 {'grouped' if in_groups(node, weight) else 'dense'}"
    return found


def _add(
    made: dict[str, tuple[onnx.ModelProto, dict[str, str]]],
    name: str,
    model: onnx.ModelProto,
    form: str,
    kinds: Mapping[str, str],
    calibration: Feeds,
    *,
    reduce_range: bool,
) -> None:
    """Make the file with the layers of kind ``int8`` in integers, unless there is one with these forms."""
    shown = forms(model, form)
    grouped = (
        [layer for layer in find_grouped_linears(model) if kinds.get(layer.name) == "int8"] if form == "grouped" else []
    )
    dense = {node: weight for node, weight in dense_layers(model).items() if kinds.get(weight) == "int8"}
    for weight in (*(layer.name for layer in grouped), *dense.values()):
        shown[weight] = shown[weight].replace("fp32", "int8")
    if grouped and reduce_range:
        name = f"{name}, {REDUCED}"
        shown |= {layer.name: f"{shown[layer.name]}, {REDUCED}" for layer in grouped}
    if any(shown == other for _, other in made.values()):
        return
    if grouped:
        names = sorted({tensor for layer in grouped for tensor in (layer.source, layer.result)})
        model = write_grouped_int8(model, grouped, observe(model, names, calibration), reduce_range=reduce_range)
    made[name] = dense_int8(model, calibration, dense) if dense else model, shown


def observe(model: onnx.ModelProto, names: list[str], calibration: Feeds) -> dict[str, list[Array]]:
    """Values of tensors on the calibration data, a batch an entry; of large ones an even selection and the extremes."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    outputs = {value.name for value in watched.graph.output}
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in outputs)
    session = session_of(watched, threads=1)
    found: dict[str, list[Array]] = {name: [] for name in names}
    for feed in batches(model, calibration):
        for name, value in zip(names, session.run(names, feed), strict=True):
            found[name].append(_selected(np.asarray(value)))
    return found


def _selected(values: Array) -> Array:
    if values.size <= MOST_VALUES:
        return values
    flat = values.reshape(-1)
    return np.concatenate([flat[:: -(-values.size // MOST_VALUES)], [flat.min(), flat.max()]])


def refit_head(model: onnx.ModelProto, samples: Samples) -> tuple[str, dict[str, float]]:
    """Fit the calibration head to the file's own logits on the held-out data and store it, in place.

    Returns:
        What was done, and NLL and ECE on the held-out data before and after.
    """
    stored = {
        item.name.rpartition("calibration.")[2]: item for item in model.graph.initializer if "calibration." in item.name
    }
    if not stored:
        return "none that can be fitted again", {}
    if samples.labels is None:
        return "kept: no labels to fit it on", {}
    logits = torch.from_numpy(values_of(model, "logits", samples.held_out).astype(np.float64))
    labels = torch.from_numpy(np.asarray(samples.labels))[: len(logits)]
    figures = _figures(model, samples.held_out, labels, "before")
    try:
        if "temperature" in stored:
            before = float(numpy_helper.to_array(stored["temperature"]))
            fitted = {"temperature": np.float32(fit_temperature(logits, labels))}
            text = f"temperature fitted again: {before:.4f} before, {float(fitted['temperature']):.4f} after"
        else:
            scale, bias = fit_vector_scaling(logits, labels)
            fitted = {"scale": scale.float().numpy(), "bias": bias.float().numpy()}
            text = "vector scaling fitted again"
    except ValueError as error:
        return f"kept: {error}", figures
    for name, value in fitted.items():
        item = stored[name]
        item.CopyFrom(numpy_helper.from_array(np.asarray(value).reshape(tuple(item.dims)), item.name))
    return text, figures | _figures(model, samples.held_out, labels, "after")


def _figures(model: onnx.ModelProto, inputs: Feeds, labels: torch.Tensor, when: str) -> dict[str, float]:
    table = torch.from_numpy(values_of(model, "probabilities", inputs).astype(np.float64))
    return {f"nll_{when}": metrics.nll(table, labels), f"ece_{when}": metrics.ece(table, labels)}
