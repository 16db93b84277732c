"""Training that survives a bad step."""

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


class LossGuard(L.Callback):
    """Leaves out optimiser steps whose loss or gradient is not finite, or whose loss leaps; stops after too many.

    A step that is left out changes no weight and no moment; where several processes train, all of them leave it
    out. A fused optimiser decides that on the device (its `found_inf`), so no step waits for it; with another the host
    waits. Every `every` steps the main process appends the evidence to `path`, a line of JSON for each step that was
    left out: its number, its loss, the median that it was held against, and the names of the main process's samples.
    All noise is a function of the seed and the step, so that is enough to repeat it.

    Args:
        path: of the evidence.
        spike: a loss of so many times the median of the last `window` steps is a leap; null asks for finite ones only.
        window: steps of the median; until it is full nothing is a leap.
        patience: so many steps left out within one window stop the training.
        every: optimiser steps between two looks.

    Raises:
        InputError: too many steps were left out, or a number is out of range.
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
        self.losses: list[float] = []  # of the last steps that were taken
        self.left_out: list[int] = []  # numbers of the steps that were not
        self._limit = float("inf")
        self._losses: list[Tensor] = []  # of the micro-batches of this step
        self._names: list[str] = []
        self._unread: list[tuple[int, Tensor, list[str]]] = []  # (step, [loss, left out], names of the samples)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._names += batch.name

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach().float())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        loss = torch.stack(self._losses).sum()  # Lightning has divided each by their number
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).float().sum()  # finite where all are
        bad = ~torch.isfinite(norm) | ~(loss <= self._limit)
        seen = torch.stack([loss, bad.float()])
        if trainer.world_size > 1:
            seen = trainer.strategy.reduce(seen, reduce_op="max")  # type: ignore[assignment]
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = seen[1]  # type: ignore[attr-defined]
        elif seen[1]:
            optimizer.zero_grad()  # a weight without gradient is left as it is
        self._unread.append((trainer.global_step, seen, self._names))
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
        lines = []
        for step, seen, names in self._unread:
            loss, bad = seen.tolist()
            if bad:
                self.left_out.append(step)
                held = median(self.losses) if self.losses else None
                lines.append(json.dumps({"step": step, "loss": loss, "median": held, "samples": names}) + "\n")
            else:
                self.losses.append(loss)
        self._unread = []
        self.losses = self.losses[-self.window :]
        if self.spike is not None and len(self.losses) == self.window:
            self._limit = self.spike * median(self.losses)
        if lines and trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.writelines(lines)
        recent = [step for step in self.left_out if step > trainer.global_step - self.window]
        if len(recent) >= self.patience:
            raise InputError(
                f"{len(recent)} of the last {self.window} steps had a loss that is not finite or leaps, the last one "
                f"step {recent[-1]}; see {self.path}, and go on from an earlier checkpoint with a lower learning rate"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "left_out": self.left_out, "limit": self._limit}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.left_out, self._limit = (state_dict[name] for name in ("losses", "left_out", "limit"))
