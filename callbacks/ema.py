"""Exponential moving average of the trainable weights."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor


class TrainableEMA(L.Callback):
    """Averages the weights that train, and lends the average to validation, test and predict.

    Frozen weights are neither copied nor saved. The average is float32, kept in the checkpoint, and
    resumes with it. Until the average has seen 1 / (1 − decay) steps its decay is (1 + n) / (10 + n).

    Args:
        decay: of the average per optimiser step, in [0, 1).

    Raises:
        ValueError: a decay outside [0, 1).
    """

    def __init__(self, decay: float = 0.998) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay, self.steps = decay, 0
        self.average: dict[str, Tensor] = {}
        self._lent: dict[str, Tensor] | None = None

    @staticmethod
    def _trainable(module: L.LightningModule) -> dict[str, Tensor]:
        return {name: p.data for name, p in module.named_parameters() if p.requires_grad}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        weights = self._trainable(pl_module)
        if not self.average:
            self.average = {name: weight.detach().float().clone() for name, weight in weights.items()}
        self.average = {name: self.average[name].to(weight.device) for name, weight in weights.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_) -> None:
        if trainer.global_step == self.steps:  # no optimiser step in this batch
            return
        self.steps = trainer.global_step
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights = self._trainable(pl_module)
        averages = [self.average[name] for name in weights]
        torch._foreach_lerp_(averages, [weight.float() for weight in weights.values()], 1 - decay)

    def _lend(self, module: L.LightningModule) -> None:
        if self.average and self._lent is None:
            weights = self._trainable(module)
            self._lent = {name: weight.clone() for name, weight in weights.items()}
            for name, weight in weights.items():
                weight.copy_(self.average[name])

    def _take_back(self, module: L.LightningModule) -> None:
        if self._lent is not None:
            for name, weight in self._trainable(module).items():
                weight.copy_(self._lent[name])
            self._lent = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lend(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_back(pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lend(pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_back(pl_module)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lend(pl_module)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_back(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._take_back(pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint written within a validation holds the weights that train, not their average."""
        checkpoint["state_dict"].update(self._lent or {})

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self.steps = state_dict["average"], state_dict["steps"]
