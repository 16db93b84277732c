"""AdamW with warm-up: the optimiser of every editor and prior."""

from __future__ import annotations

import math
from typing import Literal, get_args

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer

from fp_lightning.editor import FramePainter
from fp_lightning.errors import InputError

Schedule = Literal["constant", "cosine"]


def check_last_validation(trainer: L.Trainer) -> None:
    """For modules that write what they train after each validation.

    Raises:
        InputError: `max_steps` is no multiple of `val_check_interval`, so that its last steps would never be written.
    """
    steps, every = trainer.max_steps, trainer.val_check_interval
    if steps > 0 and isinstance(every, int) and trainer.check_val_every_n_epoch is None and steps % every:
        raise InputError(
            f"training is written after each validation, but trainer.max_steps {steps} is no multiple of "
            f"trainer.val_check_interval {every}; make it {steps - steps % every or every}"
        )


class AdamWModule(L.LightningModule):
    """What the trainings of an editor's parts share: AdamW over the weights that train, its schedule, its clipping.

    Args:
        editor: whose weights that require a gradient train.
        learning_rate: after warm-up.
        betas, weight_decay: of AdamW.
        warmup: optimiser steps of linear warm-up.
        schedule: "constant" (paper) or "cosine" to zero over the whole fit.
    """

    def __init__(
        self,
        editor: FramePainter,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        warmup: int,
        schedule: Schedule,
    ) -> None:
        super().__init__()
        self.editor, self.learning_rate, self.betas, self.weight_decay = editor, learning_rate, betas, weight_decay
        self.warmup, self.schedule = warmup, schedule

    def setup(self, stage: str) -> None:
        """Raises InputError: an unknown schedule, one without an end, or a size that does not fit the network."""
        if self.schedule not in get_args(Schedule):
            raise InputError(f"schedule must be constant or cosine, got {self.schedule!r}")
        if self.schedule == "cosine" and stage == "fit" and self.trainer.max_steps == self.trainer.max_epochs == -1:
            raise InputError("schedule cosine needs an end: set trainer.max_steps or trainer.max_epochs")
        size = getattr(getattr(self.trainer, "datamodule", None), "size", None)
        if size is not None:
            self.editor.check_size(tuple(size))

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """As Lightning does, but also for a fused optimiser under bf16-mixed: only scaled gradients forbid it."""
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or GradClipAlgorithmType.NORM)
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trainable = [p for p in self.editor.parameters() if p.requires_grad]
        fused = self.trainer.precision != "16-mixed"  # a fused step cannot be clipped where gradients are scaled
        optimizer = torch.optim.AdamW(
            trainable, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay, fused=fused
        )
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / (self.warmup + 1))
            if self.schedule == "constant":
                return warm
            done = max(0.0, (step - self.warmup) / max(1.0, total - self.warmup))
            return warm * (1 + math.cos(done * math.pi)) / 2

        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}
