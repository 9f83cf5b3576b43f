"""Passes: frozen dataclasses that rewrite a program's graphs through `sparsify.ir.surgery`."""

from sparsify.passes.absorb_biases import AbsorbBiases as AbsorbBiases
from sparsify.passes.attach_calibration_head import AttachCalibrationHead as AttachCalibrationHead
from sparsify.passes.average_steps import AverageSteps as AverageSteps
from sparsify.passes.base import (
    CHANGED as CHANGED,
)
from sparsify.passes.base import (
    DEPLOYED as DEPLOYED,
)
from sparsify.passes.base import (
    UNCHANGED as UNCHANGED,
)
from sparsify.passes.base import (
    Effect as Effect,
)
from sparsify.passes.base import (
    Kept as Kept,
)
from sparsify.passes.base import (
    Pass as Pass,
)
from sparsify.passes.base import (
    PassLog as PassLog,
)
from sparsify.passes.base import (
    Preserves as Preserves,
)
from sparsify.passes.compact_grouped import CompactGrouped as CompactGrouped
from sparsify.passes.deploy import Deploy as Deploy
from sparsify.passes.eliminate_dead_code import EliminateDeadCode as EliminateDeadCode
from sparsify.passes.eliminate_unread_outputs import EliminateUnreadOutputs as EliminateUnreadOutputs
from sparsify.passes.fold_batch_norm import FoldBatchNorm as FoldBatchNorm
from sparsify.passes.fold_layer_norm import FoldLayerNorm as FoldLayerNorm
from sparsify.passes.fold_masks import FoldMasks as FoldMasks
from sparsify.passes.insert_gradient_taps import InsertGradientTaps as InsertGradientTaps
from sparsify.passes.insert_masks import InsertMasks as InsertMasks
from sparsify.passes.insert_random_masks import InsertRandomMasks as InsertRandomMasks
from sparsify.passes.instruments import (
    dump_to as dump_to,
)
from sparsify.passes.instruments import (
    print_after as print_after,
)
from sparsify.passes.instruments import (
    print_diff as print_diff,
)
from sparsify.passes.instruments import (
    recording as recording,
)
from sparsify.passes.lower_grouped import LowerGroupedConv as LowerGroupedConv
from sparsify.passes.lower_grouped import LowerGroupedLinear as LowerGroupedLinear
from sparsify.passes.lower_masks import LowerMasks as LowerMasks
from sparsify.passes.options import (
    Option as Option,
)
from sparsify.passes.options import (
    Range as Range,
)
from sparsify.passes.options import (
    option as option,
)
from sparsify.passes.order_outputs import OrderOutputs as OrderOutputs
from sparsify.passes.record_randomness import RecordRandomness as RecordRandomness
from sparsify.passes.registry import PASSES as PASSES
from sparsify.passes.registry import Pipeline as Pipeline
from sparsify.passes.registry import register as register
from sparsify.passes.remove_random_masks import RemoveRandomMasks as RemoveRandomMasks
from sparsify.passes.scale_prediction import ScalePrediction as ScalePrediction
from sparsify.passes.scale_prediction import fit_scale as fit_scale
from sparsify.passes.set_steps import SetSteps as SetSteps
from sparsify.passes.spiking import Spiking as Spiking
from sparsify.passes.widen_classifier import WidenClassifier as WidenClassifier

__all__ = [
    "CHANGED", "DEPLOYED", "PASSES", "UNCHANGED", "AbsorbBiases", "AttachCalibrationHead", "AverageSteps", "CompactGrouped", "Deploy",
    "Effect", "EliminateDeadCode", "EliminateUnreadOutputs", "FoldBatchNorm", "FoldLayerNorm", "FoldMasks", "InsertGradientTaps",
    "InsertMasks", "InsertRandomMasks", "Kept", "LowerGroupedConv", "LowerGroupedLinear", "LowerMasks", "Option", "OrderOutputs",
    "Pass", "PassLog", "Pipeline", "Preserves", "Range", "RecordRandomness", "RemoveRandomMasks", "ScalePrediction", "SetSteps", "Spiking",
    "WidenClassifier", "dump_to", "fit_scale", "option", "print_after", "print_diff", "recording", "register",
]  # fmt: skip
