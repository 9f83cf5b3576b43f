"""``attach-calibration-head``: calibrated probabilities, or an interval, as nodes after the output that the task reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from sparsify.errors import PassError
from sparsify.ir import Program, Stage, TensorSpec, surgery
from sparsify.ir.traits import named_outputs
from sparsify.passes.base import UNCHANGED, Effect, Kept, Pass, PassLog
from sparsify.passes.options import option
from sparsify.tasks import TASKS, Task, kind

KINDS = ("temperature", "vector", "label-temperature", "interval")
aten = torch.ops.aten


@dataclass(frozen=True)
class AttachCalibrationHead(Pass):
    """Add the output ``probabilities``, of the shape of the logits, to the eval phase; of a regression ``lower`` and ``upper``.

    ``temperature``: softmax(z / T), or sigmoid(z / T) of a task of yes or no, with buffer ``calibration.temperature``, 1 until
    fitted. ``label-temperature``: the same with a T of each label, [K]. ``vector``: softmax(a * z + b) with buffers
    ``calibration.scale`` and ``calibration.bias`` [K], 1 and 0 until fitted (Guo et al. 2017, section 4.2). ``interval``: prediction
    minus and plus the buffer ``calibration.reach``, 0 until fitted, one of each output of a sample.

    Raises:
        PassError: If there is a head already, the task has no head of that kind, or the output is none that the task takes.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> program = sp.trace(torch.nn.Linear(8, 4), torch.rand(2, 8)).eval()
        >>> program = sp.Pipeline.parse("attach-calibration-head")(program)
        >>> list(program.outputs(torch.rand(3, 8)))
        ['logits', 'probabilities']
    """

    name: ClassVar = "attach-calibration-head"
    requires: ClassVar = tuple(Stage)
    effects: ClassVar = Effect.EVAL_GRAPH | Effect.NAMES

    kind: str = option(
        "temperature",
        "temperature (one parameter, keeps the decision), vector (two per class), label-temperature (one per label), or interval",
        choices=KINDS,
    )
    task: str = option("classification", "what the output means", choices=TASKS)

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": UNCHANGED, "eval": UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log, names, task = PassLog(self.name), program.output_names("eval"), kind(self.task)
        added = ("lower", "upper") if self.kind == "interval" else ("probabilities",)
        for name in added:
            if name in names:
                raise PassError(f"{self.name}: {program.name!r} already has an output {name!r}.")
        if self.kind not in task.heads:
            raise PassError(
                f"{self.name}: task {task.name!r} has {' and '.join(task.heads) or 'no'} heads, found kind {self.kind!r}. Choose one of "
                f"them, or set the option task."
            )
        if task.output not in names:
            raise PassError(
                f"{self.name}: {program.name!r} returns {', '.join(names)}, and task {task.name!r} reads {task.output!r}. Trace it for "
                f"its task, or set the option task."
            )
        value: fx.Node = named_outputs(program.output_node("eval"))[task.output]
        spec: TensorSpec = value.meta["spec"]
        if not task.takes(spec.shape):
            raise PassError(
                f"{self.name}: calibration needs {task.targets}; {program.name!r} returns {spec}. Pool or select them in the model, or "
                f"set the option task."
            )
        found = (
            _interval(program, value, spec)
            if self.kind == "interval"
            else [self._probabilities(program, value, spec, task)]
        )
        for name, node in zip(added, found, strict=True):
            surgery.append_output(program, "eval", name, node)
            log.change(name)
        return log

    def _probabilities(self, program: Program, logits: fx.Node, spec: TensorSpec, task: type[Task]) -> fx.Node:
        output = program.output_node("eval")
        if self.kind == "vector":
            surgery.add_state(program, "calibration.scale", torch.ones(int(spec.shape[1])))
            surgery.add_state(program, "calibration.bias", torch.zeros(int(spec.shape[1])))
            scale = surgery.state_node(program, "eval", "calibration.scale", before=output)
            bias = surgery.state_node(program, "eval", "calibration.bias", before=output)
            scaled = surgery.call_after(program, "eval", bias, aten.mul.Tensor, (logits, scale), spec=spec)
            value = surgery.call_after(program, "eval", scaled, aten.add.Tensor, (scaled, bias), spec=spec)
        else:
            size = (int(spec.shape[1]),) if self.kind == "label-temperature" else ()
            surgery.add_state(program, "calibration.temperature", torch.ones(size))
            temperature = surgery.state_node(program, "eval", "calibration.temperature", before=output)
            value = surgery.call_after(program, "eval", temperature, aten.div.Tensor, (logits, temperature), spec=spec)
        if task.link == "sigmoid":
            return surgery.call_after(program, "eval", value, aten.sigmoid.default, (value,), spec=spec)
        return surgery.call_after(program, "eval", value, aten.softmax.int, (value, task.class_dim), spec=spec)


def _interval(program: Program, prediction: fx.Node, spec: TensorSpec) -> list[fx.Node]:
    """Lower and upper bound; one reach of all outputs where a sample's are not always as many."""
    sizes = spec.shape[1:]
    shape = [size for size in sizes if isinstance(size, int)]
    surgery.add_state(program, "calibration.reach", torch.zeros(shape if len(shape) == len(sizes) else ()))
    reach = surgery.state_node(program, "eval", "calibration.reach", before=program.output_node("eval"))
    lower = surgery.call_after(program, "eval", reach, aten.sub.Tensor, (prediction, reach), spec=spec)
    return [lower, surgery.call_after(program, "eval", lower, aten.add.Tensor, (prediction, reach), spec=spec)]
