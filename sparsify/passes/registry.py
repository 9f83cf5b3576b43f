"""Passes by name, and pipelines of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsify.arguments import checked, checked_fields
from sparsify.errors import PassError, SparsifyError
from sparsify.ir import Program
from sparsify.passes.absorb_biases import AbsorbBiases
from sparsify.passes.attach_calibration_head import AttachCalibrationHead
from sparsify.passes.average_steps import AverageSteps
from sparsify.passes.base import PASSES, Pass, PassLog, register, say, split_pipeline
from sparsify.passes.compact_grouped import CompactGrouped
from sparsify.passes.deploy import Deploy
from sparsify.passes.eliminate_dead_code import EliminateDeadCode
from sparsify.passes.eliminate_unread_outputs import EliminateUnreadOutputs
from sparsify.passes.fold_batch_norm import FoldBatchNorm
from sparsify.passes.fold_layer_norm import FoldLayerNorm
from sparsify.passes.fold_masks import FoldMasks
from sparsify.passes.insert_gradient_taps import InsertGradientTaps
from sparsify.passes.insert_masks import InsertMasks
from sparsify.passes.insert_random_masks import InsertRandomMasks
from sparsify.passes.instruments import Instrument, note
from sparsify.passes.lower_grouped import LowerGroupedConv, LowerGroupedLinear
from sparsify.passes.lower_masks import LowerMasks
from sparsify.passes.order_outputs import OrderOutputs
from sparsify.passes.record_randomness import RecordRandomness
from sparsify.passes.remove_random_masks import RemoveRandomMasks
from sparsify.passes.scale_prediction import ScalePrediction
from sparsify.passes.set_steps import SetSteps
from sparsify.passes.spiking import Spiking
from sparsify.passes.widen_classifier import WidenClassifier

_NO_PROGRAM = "a pipeline takes a program, found {found}. Trace the model: sparsify.trace(model, (x,))."

for _cls in (
    Spiking,
    AverageSteps,
    SetSteps,
    InsertMasks,
    InsertGradientTaps,
    InsertRandomMasks,
    RemoveRandomMasks,
    RecordRandomness,
    LowerMasks,
    WidenClassifier,
    ScalePrediction,
    AttachCalibrationHead,
    FoldMasks,
    Deploy,
    FoldBatchNorm,
    EliminateDeadCode,
    OrderOutputs,
    EliminateUnreadOutputs,
    FoldLayerNorm,
    AbsorbBiases,
    LowerGroupedConv,
    LowerGroupedLinear,
    CompactGrouped,
):
    register(_cls)


@checked_fields(PassError)
@dataclass(frozen=True)
class Pipeline:
    """Passes in order. Calling it clones the program once and returns the rewritten clone.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> program = sp.trace(torch.nn.Linear(8, 4), torch.rand(2, 8))
        >>> sparse = sp.Pipeline.parse("insert-masks{density=0.25} | fold-masks")(program)
        >>> int(sparse.weight("weight").count_nonzero()), int(program.weight("weight").count_nonzero())
        (8, 32)
    """

    passes: tuple[Pass, ...]

    @classmethod
    @checked(PassError)
    def parse(cls, text: str) -> Pipeline:
        """Read ``"insert-masks{density=0.1} | fold-masks"``; the inverse of ``str``.

        Raises:
            PassError: If a pass or option is unknown, naming the nearest one.
        """
        passes: list[Pass] = []
        for name, options in split_pipeline(text):
            passes.append(PASSES.find(name).parse_options(options))
        return cls(tuple(passes))

    def __str__(self) -> str:
        return " | ".join(map(str, self.passes))

    @checked(PassError, program=_NO_PROGRAM)
    def __call__(self, program: Program) -> Program:
        return self.run(program)[0]

    @checked(PassError, program=_NO_PROGRAM)
    def run(self, program: Program, instruments: Sequence[Instrument] = ()) -> tuple[Program, tuple[PassLog, ...]]:
        """Call the pipeline and also return the log of each pass. Instruments see the program before and after each pass."""
        program = program.clone()
        return program, self.apply(program, instruments)

    @checked(PassError, program=_NO_PROGRAM)
    def apply(self, program: Program, instruments: Sequence[Instrument] = ()) -> tuple[PassLog, ...]:
        """Rewrite ``program`` in place, without a clone; for callers who own it.

        Raises:
            SparsifyError: If a pass refuses the program or fails; the message names the pass and those that ran before it.
        """
        logs: list[PassLog] = []
        for index, step in enumerate(self.passes):
            before = program.text() if instruments else ""
            try:
                logs.append(step(program))
            except SparsifyError as error:
                if index:
                    say(error, f"Before {step} ran: {' | '.join(map(str, self.passes[:index]))}.")
                raise
            note(step, logs[-1])
            for instrument in instruments:
                instrument(index, step, before, program.text(), logs[-1])
        return tuple(logs)
