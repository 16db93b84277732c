"""Exponential moving average of the trainable weights."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from fp_lightning.training.sharding import placed_like, release


class TrainableEMA(L.Callback):
    """Average the trainable weights, and use the average in validation, test and prediction.

    The average is float32 and is saved in checkpoints. Frozen weights are neither copied nor saved. The decay at
    step n is at most (1 + n) / (10 + n), so that the first steps do not dominate.

    Args:
        decay: decay of the average per optimiser step, in [0, 1).

    Raises:
        ValueError: `decay` is outside [0, 1).
    """

    def __init__(self, decay: float = 0.998) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}; try 0.998")
        self.decay, self.steps = decay, 0
        self.average: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] | None = None  # trained weights while the average is in use

    @staticmethod
    def _trainable(module: L.LightningModule) -> dict[str, Tensor]:
        """Return the trainable weights by name, without copying them; of a sharded network, the shards."""
        release(module)
        return {name: p.data for name, p in module.named_parameters() if p.requires_grad}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        weights = self._trainable(pl_module)
        if not self.average:
            self.average = {name: weight.detach().float().clone() for name, weight in weights.items()}
        self.average = {name: placed_like(self.average[name], weight) for name, weight in weights.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_) -> None:
        if trainer.global_step == self.steps:  # no optimiser step in this batch
            return
        self.steps = trainer.global_step
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights = self._trainable(pl_module)
        averages = [self.average[name] for name in weights]
        torch._foreach_lerp_(averages, [weight.float() for weight in weights.values()], 1 - decay)

    def _use_average(self, module: L.LightningModule) -> None:
        """Replace the trained weights by their average."""
        if self.average and self._trained is None:
            weights = self._trainable(module)
            self._trained = {name: weight.clone() for name, weight in weights.items()}
            for name, weight in weights.items():
                weight.copy_(self.average[name])

    def _restore_trained(self, module: L.LightningModule) -> None:
        """Put the trained weights back."""
        if self._trained is not None:
            for name, weight in self._trainable(module).items():
                weight.copy_(self._trained[name])
            self._trained = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._use_average(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore_trained(pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._use_average(pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore_trained(pl_module)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._use_average(pl_module)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore_trained(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore_trained(pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the trained weights, not their average, in a checkpoint written during validation."""
        checkpoint["state_dict"].update(self._trained or {})

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self.steps = state_dict["average"], state_dict["steps"]
