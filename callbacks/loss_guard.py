"""Skip optimiser steps with a non-finite or exploding loss."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from fp_lightning.errors import InputError
from fp_lightning.training.sharding import local


class LossGuard(L.Callback):
    """Skip optimiser steps whose loss or gradient is not finite or whose loss spikes; stop after too many.

    A skipped step changes no weights and no optimiser moments. All processes skip the same steps. Fused optimisers
    decide on the device (by their `found_inf`), so no step waits for the host; other optimisers wait.

    Skipped steps are recorded in `path`, one line of JSON each: the step, its loss, the median loss it was compared
    with, and the names of the main process's samples. Noise depends only on seed and step, so the record is enough
    to reproduce the step.

    In float16, `GradScaler` starts at a scale at which gradients overflow, skips those steps itself and lowers the
    scale. They are not recorded. An overflow at scale 1 or below is.

    Args:
        path: file for the records.
        spike: a loss above `spike` times the median of the last `window` steps is a spike; null only checks that
            losses are finite.
        window: number of steps of the median. There are no spikes before it is full.
        patience: number of skipped steps within one window that stops training.
        every: number of optimiser steps between two checks of the records.

    Raises:
        InputError: too many steps were skipped, or an argument is out of range.
    """

    def __init__(
        self,
        path: str | Path,
        spike: float | None = 10.0,
        window: int = 100,
        patience: int = 10,
        every: int = 20,
    ) -> None:
        if (spike is not None and spike <= 1) or min(window, patience, every) < 1:
            raise InputError(
                "spike must be greater than 1, window, patience and every 1 or more, "
                f"got {spike}, {window}, {patience} and {every}"
            )
        self.path, self.spike, self.window, self.patience, self.every = Path(path), spike, window, patience, every
        self.losses: list[float] = []  # losses of the last steps that were not skipped
        self.skipped: list[int] = []  # numbers of the skipped steps
        self._limit = float("inf")
        self._losses: list[Tensor] = []  # losses of the micro-batches of this step
        self._names: list[str] = []
        self._unread: list[tuple[int, Tensor, list[str]]] = []  # (step, [loss, skipped], names of the samples)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._names += batch.name

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach().float() / _scale(trainer, loss))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        loss = torch.stack(self._losses).sum()  # Lightning has divided each by the number of micro-batches
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [local(p.grad) for p in weights if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).float().sum()  # finite if all gradients are
        overflow = ~torch.isfinite(norm) & (_scale(trainer, loss) <= 1)
        bad = overflow | ~torch.isfinite(loss) | (loss > self._limit)
        outcome = torch.stack([loss, bad.float()])
        if trainer.world_size > 1:
            outcome = trainer.strategy.reduce(outcome, reduce_op="max")  # type: ignore[assignment]
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = outcome[1]  # type: ignore[attr-defined]
        elif outcome[1]:
            optimizer.zero_grad()  # the optimiser skips weights without gradient
        self._unread.append((trainer.global_step, outcome, self._names))
        self._losses, self._names = [], []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if len(self._unread) >= self.every:
            self._read(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._read(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._read(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._read(trainer)

    def _read(self, trainer: L.Trainer) -> None:
        """Read the outcomes of the last steps from the device, record skipped steps and update the limit."""
        lines = []
        for step, outcome, names in self._unread:
            loss, bad = outcome.tolist()
            if bad:
                self.skipped.append(step)
                typical = median(self.losses) if self.losses else None
                lines.append(json.dumps({"step": step, "loss": loss, "median": typical, "samples": names}) + "\n")
            else:
                self.losses.append(loss)
        self._unread = []
        self._update_limit()
        if lines and trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.writelines(lines)
        recent = [step for step in self.skipped if step > trainer.global_step - self.window]
        if len(recent) >= self.patience:
            raise InputError(
                f"{len(recent)} of the last {self.window} steps had a loss that is not finite or spikes, the last one "
                f"step {recent[-1]}; see {self.path}, and resume an earlier checkpoint with a lower learning rate"
            )

    def state_dict(self) -> dict[str, Any]:
        # "left_out" is the key in existing checkpoints
        return {"losses": self.losses, "left_out": self.skipped, "limit": self._limit}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.skipped = state_dict["losses"], state_dict["left_out"]
        self._update_limit()

    def _update_limit(self) -> None:
        """Compute the largest loss that is no spike."""
        self.losses = self.losses[-self.window :]
        known = self.spike is not None and len(self.losses) == self.window
        self._limit = self.spike * median(self.losses) if known else float("inf")  # type: ignore[operator]


def _scale(trainer: L.Trainer, loss: Tensor) -> Tensor:
    """Return the factor by which float16 training multiplies losses and gradients; 1 in other precisions."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    one = torch.ones_like(loss, dtype=torch.float32)
    return one if scaler is None else scaler.scale(one)
