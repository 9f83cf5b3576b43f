"""The state of a run: everything that changes from step to step, in one state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.parts.samples import Samples
from sparsify.training.history import epoch_row
from sparsify.training.settings import Settings, lr_factor
from sparsify.training.state import SparseTrainer


class RunState:
    """A run between two steps.

    Args:
        trainer: the trainer, with its program and optimizer.
        optimizer: the optimizer of the trainer; it gets a learning-rate schedule.
        settings: settings of the run.
        per_epoch: steps per epoch.

    Attributes:
        history: a row per epoch (`sparsify.training.history`).
        sums: sum of the losses, and number of right decisions, in this epoch.
        grown: by weight, the number of positions that rounds had activated by the last row.
        best: validation loss and program of the best epoch, if the run may stop early; else empty.
        waited: epochs since the best one.
    """

    def __init__(
        self, trainer: SparseTrainer, optimizer: torch.optim.Optimizer, settings: Settings, per_epoch: int
    ) -> None:
        self.trainer, self.program, self.optimizer = trainer, trainer.program, optimizer
        self.settings, self.per_epoch = settings, per_epoch
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        costs = self.program.costs()
        # allocations round by at most one position per weight
        self._budget = round(trainer.method.density * costs.maskable) + len(self.program.masks())
        self.history, self.sums = list[dict[str, Any]](), [0.0, 0.0]
        self.grown, self.best, self.waited = dict[str, int](), dict[str, Any](), 0

    def _factor(self, step: int) -> float:
        return lr_factor(*self.trainer.position(step), self.settings)

    @property
    def over(self) -> bool:
        """Whether the run is over: all steps were taken, or it stops early."""
        patience = self.settings.early_stop
        return self.trainer.steps >= self.trainer.total_steps or bool(patience and self.waited >= patience)

    @property
    def between_epochs(self) -> bool:
        """Whether the last step ended an epoch."""
        return self.trainer.steps % self.per_epoch == 0

    def take(self, loss: float, hits: float | None) -> None:
        """Add a step to the sums of the epoch.

        Args:
            loss: loss of its batch.
            hits: number of right decisions; None if the task makes no decisions.
        """
        self._scheduler.step()
        self.sums = [self.sums[0] + loss, self.sums[1] + (hits or 0)]

    def end_epoch(self, validation: Samples, *, decides: bool) -> None:
        """Add a row to the history, and save the program if it is the best so far."""
        means = {"loss": self.sums[0] / self.per_epoch}
        if decides:
            means["accuracy"] = self.sums[1] / (self.per_epoch * self.settings.batch_size)
        self.history.append(epoch_row(self.trainer, means, validation, self.grown))
        self.sums, self.grown = [0.0, 0.0], self.trainer.grown
        if self.settings.early_stop and self.program.costs().active <= self._budget:
            loss = self.history[-1]["val_loss"]
            better = not self.best or loss < self.best["val_loss"]
            self.waited = 0 if better else self.waited + 1
            if better:
                self.best = {"val_loss": loss, "program": _copied(self.program.state_dict())}

    def go_back_to_best(self) -> None:
        """Restore the program of the best epoch, if the run stopped early."""
        if self.best and self.waited:
            self.program.load_state_dict(self.best["program"])

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state; it loads with ``weights_only=True``."""
        device = next(self.program.parameters()).device
        return {
            "program": self.program.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self._scheduler.last_epoch,
            "trainer": self.trainer.state_dict(),
            "rng": torch.random.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "best": self.best,
            "waited": self.waited,
            "history": self.history,
            "sums": self.sums,
            "grown": self.grown,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state that `sparsify.training.resumption.check_content` has checked."""
        self.program.load_state_dict(state["program"])
        self.optimizer.load_state_dict(state["optimizer"])
        # Runs of different length share a key only if no schedule depends on the length.
        self.trainer.load_state_dict({**state["trainer"], "total_steps": self.trainer.total_steps})
        self.program.verify()
        self._scheduler.last_epoch = int(state["scheduler"])
        # Otherwise, a round that replaces the optimizer's step right after resuming causes a warning about a missing step.
        self._scheduler._step_count = self._scheduler.last_epoch + 1
        for group, lr in zip(self.optimizer.param_groups, self._scheduler.base_lrs, strict=True):
            group["lr"] = lr * self._factor(self._scheduler.last_epoch)
        self.history, self.sums, self.grown = state["history"], state["sums"], state["grown"]
        self.best, self.waited = state["best"], state["waited"]
        torch.random.set_rng_state(state["rng"])
        device = next(self.program.parameters()).device
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], device)


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
