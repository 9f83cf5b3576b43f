"""``attach-calibration-head``: calibrated probabilities as nodes after the logits of the eval phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify.errors import PassError
from sparsify.ir import Program, Stage, TensorSpec, surgery
from sparsify.passes.base import UNCHANGED, Effect, Kept, Pass, PassLog
from sparsify.passes.options import option

KINDS = ("temperature", "vector")


@dataclass(frozen=True)
class AttachCalibrationHead(Pass):
    """Add the output ``probabilities`` [N, K] to the eval phase.

    ``temperature``: softmax(z / T) with buffer ``calibration.temperature``, 1 until fitted. ``vector``: softmax(a * z + b)
    with buffers ``calibration.scale`` and ``calibration.bias`` [K], 1 and 0 until fitted (Guo et al. 2017, section 4.2).

    Raises:
        PassError: If there is a head already, the kind is unknown, or the logits are not [N, K].
    """

    name: ClassVar = "attach-calibration-head"
    requires: ClassVar = (Stage.TRACED, Stage.MASKED, Stage.FOLDED)
    effects: ClassVar = Effect.EVAL_GRAPH | Effect.NAMES

    kind: str = option(
        "temperature", "temperature (one parameter, keeps the decision) or vector (two per class)", choices=KINDS
    )

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": UNCHANGED, "eval": UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log, names = PassLog(self.name), program.output_names("eval")
        if "probabilities" in names:
            raise PassError(f"{self.name}: {program.name!r} already has an output 'probabilities'.")
        output = program.output_node("eval")
        logits = output.args[0][names.index("logits")]  # type: ignore[index]
        spec: TensorSpec = logits.meta["spec"]  # type: ignore[union-attr]
        if len(spec.shape) != 2:
            raise PassError(
                f"{self.name}: calibration needs logits [N, K]; {program.name!r} returns {spec}. Pool or select them in the model."
            )
        aten = torch.ops.aten
        if self.kind == "temperature":
            surgery.add_state(program, "calibration.temperature", torch.ones(()))
            temperature = surgery.state_node(program, "eval", "calibration.temperature", before=output)
            value = surgery.call_after(program, "eval", temperature, aten.div.Tensor, (logits, temperature), spec=spec)
        else:
            surgery.add_state(program, "calibration.scale", torch.ones(int(spec.shape[1])))
            surgery.add_state(program, "calibration.bias", torch.zeros(int(spec.shape[1])))
            scale = surgery.state_node(program, "eval", "calibration.scale", before=output)
            bias = surgery.state_node(program, "eval", "calibration.bias", before=output)
            scaled = surgery.call_after(program, "eval", bias, aten.mul.Tensor, (logits, scale), spec=spec)
            value = surgery.call_after(program, "eval", scaled, aten.add.Tensor, (scaled, bias), spec=spec)
        probabilities = surgery.call_after(program, "eval", value, aten.softmax.int, (value, -1), spec=spec)
        surgery.append_output(program, "eval", "probabilities", probabilities)
        log.change("probabilities")
        return log
