"""The intermediate representation: a `Program` of two torch.fx graphs, its surgery, verifier, printer and file form."""

from sparsify.ir import surgery as surgery
from sparsify.ir.features import classifier_of as classifier_of
from sparsify.ir.features import features_over as features_over
from sparsify.ir.nodes import PHASES as PHASES
from sparsify.ir.nodes import (
    Costs as Costs,
)
from sparsify.ir.nodes import (
    GradientTap as GradientTap,
)
from sparsify.ir.nodes import (
    MaskSite as MaskSite,
)
from sparsify.ir.nodes import (
    RandomMaskSite as RandomMaskSite,
)
from sparsify.ir.nodes import (
    RandomnessRecord as RandomnessRecord,
)
from sparsify.ir.nodes import (
    Stage as Stage,
)
from sparsify.ir.nodes import (
    TensorSpec as TensorSpec,
)
from sparsify.ir.nodes import (
    WeightSite as WeightSite,
)
from sparsify.ir.per_step import PerStep as PerStep
from sparsify.ir.program import Program as Program
from sparsify.ir.tracing import TraceWarning as TraceWarning
from sparsify.ir.tracing import trace as trace
from sparsify.ir.verifier import Violation as Violation
from sparsify.ir.verifier import verify as verify
from sparsify.ir.verifier import violations as violations
