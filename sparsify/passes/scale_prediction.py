"""``scale-prediction``: an output in the units of its targets, from values that the model learns at mean 0 and deviation 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from sparsify.errors import PassError
from sparsify.ir import PHASES, Program, Stage, TensorSpec, surgery
from sparsify.ir.traits import named_outputs
from sparsify.passes.base import UNCHANGED, Effect, Kept, Pass, PassLog

aten = torch.ops.aten
OUTPUTS = ("prediction", "logits")
MEAN, DEVIATION = "prediction_scale.mean", "prediction_scale.deviation"
"""The buffers, one number per column of an output [N, K], else one number, [1]."""


@dataclass(frozen=True)
class ScalePrediction(Pass):
    """Multiply a prediction by the buffer ``prediction_scale.deviation`` and add ``prediction_scale.mean``, in both phases.

    The prediction is the output ``prediction``, or ``logits`` of a program without one. The buffers are 1 and 0 until they are set
    (`set_scale`), so that the pass changes no output. They have one number per column of an output [N, K], and one number for an output
    of another shape.

    Raises:
        PassError: If the program has the buffers already, or no floating-point output of either name.
    """

    name: ClassVar = "scale-prediction"
    requires: ClassVar = (Stage.TRACED, Stage.MASKED)
    effects: ClassVar = Effect.GRAPH | Effect.NAMES

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": UNCHANGED, "eval": UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        if scale_of(program) is not None:
            raise PassError(f"{self.name}: {program.name!r} is scaled already. Set its scale with set_scale.")
        names = program.output_names("eval")
        scaled = next((name for name in OUTPUTS if name in names), None)
        if scaled is None:
            raise PassError(
                f"{self.name}: {program.name!r} returns {', '.join(names)}, and neither {' nor '.join(OUTPUTS)}. Trace it for its task."
            )
        found = {phase: self._value(program, phase, scaled) for phase in PHASES}
        spec: TensorSpec = found["eval"].meta["spec"]
        columns = spec.shape[1] if len(spec.shape) == 2 else 1
        size = columns if isinstance(columns, int) else 1
        dtype = getattr(torch, spec.dtype)
        surgery.add_state(program, DEVIATION, torch.ones(size, dtype=dtype))
        surgery.add_state(program, MEAN, torch.zeros(size, dtype=dtype))
        for phase, value in found.items():
            output = program.output_node(phase)
            deviation = surgery.state_node(program, phase, DEVIATION, before=output)
            mean = surgery.state_node(program, phase, MEAN, before=output)
            own = value.meta["spec"]
            product = surgery.call_after(program, phase, mean, aten.mul.Tensor, (value, deviation), spec=own)
            total = surgery.call_after(program, phase, product, aten.add.Tensor, (product, mean), spec=own)
            surgery.replace_output(program, phase, scaled, total)
        log.change(scaled)
        return log

    def _value(self, program: Program, phase: str, name: str) -> fx.Node:
        value: fx.Node = named_outputs(program.output_node(phase))[name]
        spec: TensorSpec = value.meta["spec"]
        if not getattr(torch, spec.dtype).is_floating_point or not spec.shape:
            raise PassError(
                f"{self.name}: {name!r} of {program.name!r} is {spec}; what is scaled is floating-point and has one row per sample. Return "
                f"such an output, or leave the pass out."
            )
        return value


def set_scale(program: Program, mean: Tensor, deviation: Tensor) -> None:
    """Set the scale of a program that `ScalePrediction` changed.

    Args:
        program: its buffers are written.
        mean: [K], or [1].
        deviation: of the same shape, above 0.
    """
    with torch.no_grad():
        program.get_buffer(MEAN).copy_(mean)
        program.get_buffer(DEVIATION).copy_(deviation)


def scale_of(program: Program) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation, each [K] or [1], of a program that `ScalePrediction` changed; else None."""
    found = dict(program.named_buffers())
    return (found[MEAN], found[DEVIATION]) if MEAN in found and DEVIATION in found else None
