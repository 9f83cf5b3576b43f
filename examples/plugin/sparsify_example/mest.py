"""A method: MEST. docs/writing_a_method.md shows this file."""

from __future__ import annotations

from sparsify.methods.base import Method, in_range
from sparsify.methods.durations import UPDATE_EVERY, Duration, as_steps, check_durations
from sparsify.parts.allocation import Allocation, erk
from sparsify.parts.schedules import cosine, every
from sparsify.parts.scores import Score, random, stateless
from sparsify.parts.topology import DropAndGrow


def mest(
    *,
    density: float,
    balance: float = 1.0,
    update_every: Duration = UPDATE_EVERY,
    stop_at: Duration = "75%",
    drop_fraction: float = 0.3,
    allocation: Allocation = erk,
    pattern: str = "unstructured",
    keep_dense: tuple[str, ...] = (),
) -> Method:
    """MEST: drop by weight and gradient, grow at random (Yuan et al. 2021, arXiv:2110.14032).

    Args:
        density: active share of the maskable weights during the whole run, in (0, 1].
        balance: of the gradient against the weight, at least 0.
        update_every: steps between rounds, or a share of the run.
        stop_at: step, or share of the run, after which masks stay fixed.
        drop_fraction: share of the active positions dropped per round, in [0, 1]; it decays along half a cosine.
        allocation: how the density is split over weights; ERK by default.
        pattern: which positions may be active together.
        keep_dense: globs of the names of weights that get no mask.
    """
    in_range(drop_fraction, 0.0, 1.0, "drop_fraction")
    in_range(balance, 0.0, float("inf"), "balance")
    check_durations(update_every=update_every, stop_at=stop_at)

    def topology(total: int) -> DropAndGrow:
        stop = as_steps(stop_at, total, "stop_at")
        interval = as_steps(update_every, total, "update_every")
        fraction, when = cosine(drop_fraction, stop), every(interval, stop=stop)
        return DropAndGrow(drop_by=weight_and_gradient(balance), grow_by=random(), fraction=fraction, when=when)

    slots = {"allocation": allocation, "pattern": pattern, "keep_dense": keep_dense}
    return Method(name="mest", density=density, initial="random", topology=topology, **slots)


def weight_and_gradient(balance: float) -> Score:
    """|w| + balance · |dL/dw|."""
    return stateless(lambda view: view.weight.abs() + balance * view.dense_gradient().abs(), needs_gradient=True)
