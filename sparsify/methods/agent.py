"""AGENT: gradients corrected by old ones, with a coefficient learned along the way."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError, TrainingError
from sparsify.methods.base import Method, checked_method, in_range, one_of
from sparsify.methods.durations import Duration, as_steps, check_durations
from sparsify.parts.averaging import running_mean
from sparsify.parts.corrections import (
    COMPARISONS,
    Correction,
    Evaluation,
    GradientView,
    State,
    Tensors,
    control_variate,
)
from sparsify.passes import RecordRandomness

SNAPSHOTS = ("full", "subset", "running")


@checked_method
def agent(
    base: Method,
    *,
    gamma: float = 0.1,
    smoothing: float = 0.3,
    initial: float = 0.1,
    bound: float = 1.0,
    coefficient: str = "loss",
    snapshot: str = "full",
    snapshot_batches: int = 8,
    refresh_every: Duration = 0,
) -> Method:
    """AGENT: adaptive gradient correction (Lei et al. 2023, arXiv:2301.03573).

    A step's gradient g becomes ``g + gamma * c * (u - g_old)``: g_old is the gradient of the same batch at a snapshot of the weights,
    u the mean of g_old over batches. c is learned: ``c <- (1 - smoothing) * c + smoothing * c_new`` at every refresh.

    Args:
        base: any method without a correction.
        gamma: scale of the correction (the authors' code).
        smoothing: weight of the newest coefficient, in [0, 1] (the authors' code).
        initial: first coefficient (their RigL and ITOP code); no new one at the first refresh, where old and new weights are equal.
        bound: new coefficients are cut to [0, bound]; the authors' code does not. One is left out where the old losses, or gradients,
            of different batches differ by rounding alone.
        coefficient: ``loss``, the regression of a batch's loss on its loss at the old snapshot (the authors' code); ``gradient``, the
            same of gradients, which minimises the variance; ``layer``, that for each parameter; ``fixed`` keeps ``initial`` (with
            gamma and initial 1: SVRG).
        snapshot: what u is the mean of. ``full``: an epoch of batches, by a pass over them at each refresh (the authors' code);
            ``subset``: ``snapshot_batches`` of them; ``running``: the old gradients of the steps since the refresh, at no cost beyond
            g_old. A mean of k batches has noise of its own; the last two multiply the coefficient by k / (k + 1), which is optimal.
        snapshot_batches: of ``subset``.
        refresh_every: steps, or share of the run, between snapshots; 0 is an epoch (the authors' code).

    Raises:
        RecipeError: If ``base`` corrects gradients already, or an option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.agent(sp.methods.rigl(density=0.1)).name
        'agent(rigl)'
    """
    if base.correction is not None:
        raise RecipeError(f"method {base.name!r} corrects gradients already; agent() around it would replace that.")
    one_of(snapshot, SNAPSHOTS, "snapshot")
    one_of(coefficient, (*COMPARISONS, "fixed"), "coefficient")
    in_range(smoothing, 0.0, 1.0, "smoothing")
    in_range(gamma, 0.0, float("inf"), "gamma")
    in_range(bound, 0.0, float("inf"), "bound")
    in_range(snapshot_batches, 1, 10**9, "snapshot_batches")
    check_durations(0, refresh_every=refresh_every)
    limit, compare = snapshot_batches if snapshot == "subset" else None, COMPARISONS.get(coefficient)

    def first(weights: Tensors) -> State:
        names = weights if coefficient == "layer" else ("",)
        return {**_EMPTY, "step": 0, "snapshot": {}, "coefficient": dict.fromkeys(names, initial)}

    def refreshed(view: GradientView, state: State) -> State:
        """A snapshot of the current weights, and a coefficient from comparing them with the old one."""
        found, old = {**state, **(_EMPTY if snapshot != "running" else {})}, state["snapshot"]
        for batch in view.sweep(limit) if snapshot != "running" else ():
            new = batch.evaluate()
            found = _with_mean(found, new)
            if old and compare:
                found["pairs"] = compare.add(found["pairs"], new, compare.old(batch, old))
        if snapshot != "running" and not found["count"]:
            raise TrainingError("agent: the sweep is empty; it should yield the losses of an epoch of batches.")
        for name, value in (compare.solve(found["pairs"]) if compare else {}).items():
            if value is not None:
                before = found["coefficient"][name]
                after = (1 - smoothing) * before + smoothing * min(max(value, 0.0), bound)
                found["coefficient"] = {**found["coefficient"], name: after}
        found |= {"pairs": {}, "step": view.step, "snapshot": {n: v.clone() for n, v in view.weights.items()}}
        return found if snapshot != "running" else {**found, **_EMPTY}

    def correct(view: GradientView, state: State, refresh: int) -> tuple[Tensors, State]:
        period = refresh or view.epoch_steps
        if period is None:
            raise TrainingError(
                "agent takes a snapshot once an epoch: give sparsify.attach epoch_steps=len(loader), or agent refresh_every."
            )
        if not state["step"] or view.step - state["step"] >= period:
            state = refreshed(view, state)
        old, learned, count = view.batch.evaluate(state["snapshot"]), state["coefficient"], state["count"]
        scale = gamma * (1.0 if snapshot == "full" else count / (count + 1))
        found = {
            name: control_variate(gradient, state["mean"][name], old.gradients[name], scale * _of(name, learned))
            for name, gradient in view.gradients.items()
            if name in state["mean"] and name in old.gradients
        }
        if snapshot == "running":
            state = _with_mean(state, old)
            if compare:
                loss = view.batch.loss() if coefficient == "loss" else old.loss
                new = Evaluation(loss, dict(view.gradients), {})
                state["pairs"] = compare.add(state["pairs"], new, old)
        return found, state

    def correction(total: int) -> Correction:
        refresh = as_steps(refresh_every, total, "refresh_every", least=0)
        return Correction(first, lambda view, state: correct(view, state, refresh), readings=_readings, dense=True)

    return dataclasses.replace(
        base,
        name=f"agent({base.name})",
        passes=(*base.passes, RecordRandomness()),
        correction=correction,
    )


_EMPTY: State = {"count": 0, "mean": {}, "pairs": {}}


def _with_mean(state: State, batch: Evaluation) -> State:
    """The state with the gradients of one more batch at the snapshot."""
    count, mean = state["count"] + 1, state["mean"]
    means = {name: running_mean(mean.get(name), value, count) for name, value in batch.dense.items()}
    return {**state, "count": count, "mean": means}


def _of(name: str, learned: dict[str, float]) -> float:
    return learned.get(name, learned.get("", 0.0))


def _readings(state: State) -> dict[str, float]:
    return {f"coefficient {name}".strip(): value for name, value in state["coefficient"].items()}
