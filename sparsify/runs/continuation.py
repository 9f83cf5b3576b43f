"""Decides whether a run can be continued with another recipe: with other keys that training does not read, or with more epochs."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from sparsify.errors import CheckpointError
from sparsify.runs.keys import spelt
from sparsify.runs.recipe import Recipe
from sparsify.runs.toml import to_toml

AFTER_TRAINING = frozenset(
    {
        "ood",
        "ood_validation",
        "shift",
        "baseline",
        "calibrator",
        "heads",
        "opset",
        "storage",
        "form",
        "selection",
        "export_precision",
        "export_input",
        "export_batch",
    }
)
"""Keys that training does not read; a run may be resumed with other values, without training again."""
NO_BITS = frozenset({"checkpoint_every", "workers"})
"""Keys that do not affect any result."""


def fixed_length(recipe: Recipe) -> str | None:
    """Return why a run cannot get more epochs later; None if its epochs would be the same in a longer run."""
    method = recipe.build_method()
    if recipe.schedule != "constant":
        return f"schedule = {recipe.schedule!r} plans the learning rate for the length of the run, and only 'constant' does not"
    planned = {
        "the rounds": method.topology,
        "the rewinding": method.rewinding,
        "the gradient correction": method.correction,
        "the loss": method.objective,
        "the averaging": method.averaging,
    }
    found = next((what for what, slot in planned.items() if slot is not None), None)
    return None if found is None else f"{found} of method {method.name!r} is planned for the length of the run"


def training_key(recipe: Recipe) -> str:
    """Compute the SHA-256 of everything that training depends on; it is equal if one recipe can continue the other's checkpoint."""
    left_out = AFTER_TRAINING | NO_BITS | (set() if fixed_length(recipe) else {"epochs"})
    values = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if f.name not in left_out}  # type: ignore[arg-type]
    return hashlib.sha256(to_toml(values).encode()).hexdigest()


def check_continues(recipe: Recipe, earlier: Recipe, where: Path) -> None:
    """Check that a run can be continued with this recipe: all keys that its training read must be the same.

    Args:
        recipe: the recipe to continue with. Warm-ups are compared only if both recipes have them in steps.
        earlier: the recipe of the run.
        where: file of the earlier recipe, for messages.

    Raises:
        CheckpointError: If it cannot; the message names the keys that differ and why they may not.
    """
    names = [f.name for f in dataclasses.fields(recipe)]  # type: ignore[arg-type]
    changed = [name for name in names if getattr(recipe, name) != getattr(earlier, name)]
    if "warmup" in changed and not (isinstance(recipe.warmup, int) and isinstance(earlier.warmup, int)):
        changed.remove("warmup")
    fixed = [name for name in changed if name not in AFTER_TRAINING | NO_BITS | {"epochs"}]
    if fixed:
        differences = ", ".join(
            f"{spelt(key)} {getattr(earlier, key)!r}, now {getattr(recipe, key)!r}" for key in fixed
        )
        raise CheckpointError(
            f"the run was started with another recipe; see {where}: {differences}. Resume with that, or use another --out."
        )
    if "epochs" in changed:
        reason = fixed_length(recipe)
        if recipe.epochs < earlier.epochs:
            reason = "epochs that were trained cannot be taken back"
        if reason is not None:
            raise CheckpointError(
                f"the run was started with another recipe; see {where}: train.epochs {earlier.epochs}, now {recipe.epochs}, and {reason}. "
                f"Resume with {earlier.epochs}, or train anew with another --out."
            )
    if earlier.baseline and not recipe.baseline:
        raise CheckpointError(
            f"the run was started with another recipe; see {where}: it has a baseline. Resume with --baseline, or use another --out."
        )
