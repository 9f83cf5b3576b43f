"""Maximum mean calibration error as a penalty, around any method."""

from __future__ import annotations

import functools

from sparsify.methods.base import Method, checked_method, in_range, with_objective
from sparsify.parts import calibrating_losses
from sparsify.parts.objectives import Stateless


@checked_method
def mmce(
    base: Method, *, weight: float = 2.0, width: float = 0.4, squared: bool = False, weighted: bool = False
) -> Method:
    """MMCE: penalise a kernel estimate of the calibration error of each batch (Kumar et al. 2018, ICML).

    The equation is in `sparsify.parts.calibrating_losses.mmce`. The estimate needs batches of 128 samples or more. For
    classification.

    Args:
        base: any method without a loss of its own.
        weight: weight of the penalty, in [0, 1000]; 0 is cross-entropy. The default is that of the scripts of Mukhoti et al. 2020, which
            use the weighted form.
        width: of the kernel, in probability, in [0.001, 1000] (the paper's).
        squared: whether the penalty is the square of MMCE; False: MMCE, the root, as in the paper. In the code of Mukhoti et al., what is
            called MMCE is the square.
        weighted: whether right and wrong predictions of a batch have the same total weight, however many of each there are (MMCE_w of the
            paper). It matters if nearly all predictions are right.

    Raises:
        RecipeError: If ``base`` has a loss of its own or is for another task, or an option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.mmce(sp.methods.rigl(density=0.1)).name
        'mmce(rigl)'
    """
    in_range(weight, 0.0, 1000.0, "weight")
    in_range(width, 1e-3, 1e3, "width")
    loss = functools.partial(calibrating_losses.mmce, weight=weight, width=width, squared=squared, weighted=weighted)
    return with_objective(base, "mmce", lambda total: Stateless(loss))
