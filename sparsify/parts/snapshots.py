"""Corrections that use an old snapshot of the weights: gradients of the same batch there, their mean, and a learned coefficient."""

from __future__ import annotations

from dataclasses import dataclass

from sparsify.errors import TrainingError
from sparsify.parts.averaging import running_mean
from sparsify.parts.corrections import (
    COMPARISONS,
    Comparison,
    Evaluation,
    GradientView,
    State,
    Tensors,
    control_variate,
)

EMPTY: State = {"count": 0, "mean": {}, "pairs": {}}


@dataclass(frozen=True)
class SnapshotCorrection:
    """``g + gamma * c * (u - g_old)``: g_old is the gradient of the same batch at a snapshot, and u the mean of g_old over batches.

    The state holds ``step`` and ``snapshot`` of the last refresh, ``count`` and ``mean`` of the old gradients, and ``pairs`` of old and
    new values from which the next ``coefficient`` is learned (one per parameter, or a single one under "").

    Attributes:
        gamma: scale of the correction, at least 0.
        smoothing: weight of the newest coefficient in the running one, in [0, 1].
        initial: the coefficient before any was learned.
        bound: new coefficients are clipped to [0, bound].
        coefficient: how c is learned: a name of `sparsify.parts.corrections.COMPARISONS`, or ``fixed``.
        running: True: u is the mean over the steps since the refresh. False: u comes from a sweep over batches at each refresh.
        batches: number of batches in such a sweep; None: one epoch.
    """

    gamma: float
    smoothing: float
    initial: float
    bound: float
    coefficient: str
    running: bool
    batches: int | None

    def first(self, weights: Tensors) -> State:
        """Return the state before the first step; its first refresh is due at once."""
        names = weights if self.coefficient == "layer" else ("",)
        return {**EMPTY, "step": 0, "snapshot": {}, "coefficient": dict.fromkeys(names, self.initial)}

    def correct(self, view: GradientView, state: State, refresh_every: int) -> tuple[Tensors, State]:
        """Correct the gradients of a step.

        Args:
            view: what the correction sees of the step.
            state: the state before the step.
            refresh_every: steps between snapshots; 0 means one epoch.

        Returns:
            The corrected gradients by parameter name, and the state after the step.

        Raises:
            TrainingError: If the length of an epoch is needed but not known, or a sweep is empty.
        """
        period = refresh_every or view.epoch_steps
        if period is None:
            raise TrainingError(
                "agent takes a snapshot once an epoch: give sparsify.attach epoch_steps=len(loader), or agent refresh_every."
            )
        if not state["step"] or view.step - state["step"] >= period:
            state = self._refreshed(view, state)
        old, learned, count = view.batch.evaluate(state["snapshot"]), state["coefficient"], state["count"]
        whole = not self.running and self.batches is None
        scale = self.gamma * (1.0 if whole else count / (count + 1))
        found = {
            name: control_variate(gradient, state["mean"][name], old.gradients[name], scale * _of(name, learned))
            for name, gradient in view.gradients.items()
            if name in state["mean"] and name in old.gradients
        }
        return found, self._observed(view, state, old) if self.running else state

    def _observed(self, view: GradientView, state: State, old: Evaluation) -> State:
        """Add the step's own old gradient to the mean; returns the new state."""
        state, compare = _with_mean(state, old), self._compare
        if compare:
            loss = view.batch.loss() if self.coefficient == "loss" else old.loss
            new = Evaluation(loss, dict(view.gradients), {})
            state["pairs"] = compare.add(state["pairs"], new, old)
        return state

    def _refreshed(self, view: GradientView, state: State) -> State:
        """Take a snapshot of the current weights, and learn a coefficient by comparing them with the old snapshot."""
        found, old, compare = {**state, **({} if self.running else EMPTY)}, state["snapshot"], self._compare
        for batch in () if self.running else view.sweep(self.batches):
            new = batch.evaluate()
            found = _with_mean(found, new)
            if old and compare:
                found["pairs"] = compare.add(found["pairs"], new, compare.old(batch, old))
        if not self.running and not found["count"]:
            raise TrainingError("agent: the sweep is empty. It should yield one loss per batch of an epoch.")
        for name, value in (compare.solve(found["pairs"]) if compare else {}).items():
            if value is not None:
                before = found["coefficient"][name]
                after = (1 - self.smoothing) * before + self.smoothing * min(max(value, 0.0), self.bound)
                found["coefficient"] = {**found["coefficient"], name: after}
        found |= {"pairs": {}, "step": view.step, "snapshot": {n: v.clone() for n, v in view.weights.items()}}
        return {**found, **EMPTY} if self.running else found

    @property
    def _compare(self) -> Comparison | None:
        return COMPARISONS.get(self.coefficient)


def readings(state: State) -> dict[str, float]:
    """Return the learned coefficients by name, for the history."""
    return {f"coefficient {name}".strip(): value for name, value in state["coefficient"].items()}


def _with_mean(state: State, batch: Evaluation) -> State:
    """Add the gradients of one more batch at the snapshot to the mean; returns the new state."""
    count, mean = state["count"] + 1, state["mean"]
    means = {name: running_mean(mean.get(name), value, count) for name, value in batch.dense.items()}
    return {**state, "count": count, "mean": means}


def _of(name: str, learned: dict[str, float]) -> float:
    return learned.get(name, learned.get("", 0.0))
