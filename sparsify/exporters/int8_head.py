"""Refits the heads of an int8 model to the outputs of that model on held-out samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from sparsify.exporters.int8_samples import Samples
from sparsify.figures import metrics, regression
from sparsify.heads import Head, HeldOut, fitting
from sparsify.heads.base import OUTPUT
from sparsify.ir.heads import PREFIX, belonging
from sparsify.tasks import TASKS, Task, build
from sparsify.tasks.base import judged
from sparsify.timing import values_of

Tables = Mapping[str, Tensor]


@dataclass(frozen=True)
class Refit:
    """What was done to the heads of a model.

    Attributes:
        told: a description of the changes.
        figures: NLL and ECE, or coverage and width of intervals, on the held-out samples, with the program's head (before) and the refitted
            one (after).
        fit: what the new fit of the head that calibrates found, by name, with the NLL on the held-out samples of the outputs as they are
            (before) and of the calibrated ones (after); None: that head was not fitted again.
        note: why that fit deserves little trust; empty if there is no reason to doubt it.
    """

    told: str
    figures: Mapping[str, float] = field(default_factory=dict)
    fit: Mapping[str, float] | None = None
    note: str = ""


def refit_head(model: ir.Model, samples: Samples) -> Refit:
    """Fit the heads to the model's outputs on the held-out samples, in their order, and store the fitted values in the model.

    A head of training samples, or one that reads something that the model does not return, keeps its values.
    """
    stored = {name.rpartition(PREFIX)[2]: value for name, value in model.graph.initializers.items() if PREFIX in name}
    shapes = {name: tuple(_values(value).shape) for name, value in stored.items()}
    told, figures = list[str](), dict[str, float]()
    main: Refit | None = None
    for spec in samples.heads or (None,):
        head, prefix, buffers = belonging(spec, shapes)
        if head is None:
            told.append(
                f"kept: no head {spec} with these buffers is installed" if spec else "none that can be fitted again"
            )
            continue
        if samples.labels is None:
            told.append("kept: no labels to fit it on")
            continue
        found = _refit(model, samples, head, {name: stored[prefix + name] for name in buffers})
        told.append(found.told)
        figures |= found.figures
        main = found if main is None or head.calibrates else main
    text = "; ".join(dict.fromkeys(told))
    return Refit(text, figures) if main is None else Refit(text, figures, main.fit, main.note)


def _refit(model: ir.Model, samples: Samples, head: Head, stored: Mapping[str, ir.Value]) -> Refit:
    """Fit one head again."""
    task, found = samples.task or _usual_task(head), _tables(model, samples, head)
    read = [samples.main if name == OUTPUT else name for name in head.reads]
    if not head.buffers:
        return Refit(f"{head.name} has nothing to fit")
    if head.samples == "training" or not {*read} <= found.keys():
        return Refit(f"{head.name} kept, as fitted to the program")
    before = {name: _values(item) for name, item in stored.items()}
    targets = torch.from_numpy(np.asarray(samples.labels))[: len(found[samples.main])]
    figures = _figures(task, found, targets, "before") if head.calibrates else {}
    program = samples.wanted[samples.main]
    others = {name: found[name] for name in head.reads if name != OUTPUT}
    held = HeldOut(found[samples.main], targets, task, samples.level, others=others)
    try:
        fitted = head.refit(held, before, torch.from_numpy(program.table(program.values)).double())
    except ValueError as error:
        return Refit(f"kept: {error}", figures)
    for name, value in fitted.values.items():
        stored[name].const_value = ir.tensor(value.float().numpy().reshape(_numbers(stored[name]).shape))
    after = _figures(task, _tables(model, samples, head), targets, "after") if head.calibrates else {}
    text = head.told(before, fitted)
    if all(torch.equal(value, before[name]) for name, value in fitted.values.items()):
        return Refit(text, figures | after)
    losses = dict[str, float]()
    if "nll_after" in after:
        scores, answers = held.judged
        losses = {"nll_before": metrics.nll(scores.softmax(1), answers), "nll_after": after["nll_after"]}
    return Refit(text, figures | after, {**losses, **fitted.figures}, fitted.note or "")


def _numbers(stored: ir.Value) -> np.ndarray:
    assert stored.const_value is not None
    return stored.const_value.numpy()


def _values(stored: ir.Value) -> Tensor:
    """Return the values as float64. Some exporters write a scalar with shape [1]; it becomes []."""
    found = torch.from_numpy(_numbers(stored).astype(np.float64))
    return found.reshape(()) if found.shape == (1,) else found


def _usual_task(head: Head) -> Task:
    """Return the first task that the head fits, for samples without a task."""
    return build(next((name for name, task in TASKS.items() if head.name in fitting(task)), "classification"))


def _tables(model: ir.Model, samples: Samples, head: Head) -> Tables:
    """Return the outputs of a model for the held-out samples, float64 [N, ...], by name."""
    found = values_of(model, samples.held_out)
    return {
        name: torch.from_numpy(samples.wanted[name].table(found[name]).astype(np.float64))
        for name in (samples.main, *head.outputs, *head.reads)
        if name in samples.wanted
    }


def _figures(task: Task, found: Tables, targets: Tensor, when: str) -> dict[str, float]:
    if "lower" in found and "upper" in found:
        low, high = found["lower"], found["upper"]
        held = regression.coverage(targets.double().reshape(low.shape), low, high)
        return {f"coverage_{when}": held, f"width_{when}": regression.width(low, high)}
    if "probabilities" not in found:
        return {}
    table, answers = judged(task, found["probabilities"], targets)
    if task.link == "sigmoid":
        table = torch.stack([1 - table[:, 1], table[:, 1]], dim=1)
    return {f"nll_{when}": metrics.nll(table, answers), f"ece_{when}": metrics.ece(table, answers)}
