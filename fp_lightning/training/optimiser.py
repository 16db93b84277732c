"""AdamW with warm-up: the optimiser of every editor and prior."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer

from fp_lightning.errors import InputError
from fp_lightning.model.editor import FramePainter

logger = logging.getLogger(__name__)

Schedule = Literal["constant", "cosine"]
OptimizerName = Literal["adamw", "adamw_8bit"]


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


def adamw_8bit() -> Callable[..., Optimizer]:
    """The class of bitsandbytes.

    Raises:
        InputError: it is not installed.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InputError("optimizer adamw_8bit needs bitsandbytes: pip install 'fp_lightning[quant]'") from error
    return AdamW8bit


class AdamWModule(L.LightningModule):
    """What the trainings of an editor's parts share: AdamW over the weights that train, its schedule, its clipping.

    Args:
        editor: whose weights that require a gradient train.
        learning_rate: after warm-up.
        betas, weight_decay: of AdamW.
        warmup: optimiser steps of linear warm-up.
        schedule: "constant" (paper) or "cosine" to zero over the whole fit.
        optimizer: "adamw", or "adamw_8bit", whose moments take a byte instead of four (Dettmers et al. 2021, arXiv
            2110.02861), through bitsandbytes.
    """

    def __init__(
        self,
        editor: FramePainter,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        warmup: int,
        schedule: Schedule,
        optimizer: OptimizerName = "adamw",
    ) -> None:
        super().__init__()
        self.editor, self.learning_rate, self.betas, self.weight_decay = editor, learning_rate, betas, weight_decay
        self.warmup, self.schedule, self.optimizer = warmup, schedule, optimizer

    def setup(self, stage: str) -> None:
        """Raises InputError: an unknown schedule, one without an end, or a size that does not fit the network.

        Warns of a precision in which small steps are lost.
        """
        if self.schedule not in get_args(Schedule):
            raise InputError(f"schedule must be constant or cosine, got {self.schedule!r}")
        if self.schedule == "cosine" and stage == "fit" and self.trainer.max_steps == self.trainer.max_epochs == -1:
            raise InputError("schedule cosine needs an end: set trainer.max_steps or trainer.max_epochs")
        if self.optimizer not in get_args(OptimizerName):
            raise InputError(f"optimizer must be {' or '.join(get_args(OptimizerName))}, got {self.optimizer!r}")
        if stage == "fit" and str(self.trainer.precision) in ("bf16-true", "16-true"):
            logger.warning(
                "%s also keeps the weights that train in 16 bits, where steps below a few thousandths of a weight are "
                "lost; with bf16-mixed they are float32, and what is frozen takes as little memory",
                self.trainer.precision,
            )
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
        options: dict[str, Any] = {"lr": self.learning_rate, "betas": self.betas, "weight_decay": self.weight_decay}
        optimizer: Optimizer
        if self.optimizer == "adamw_8bit":
            optimizer = adamw_8bit()(trainable, **options)
        else:
            fused = self.trainer.precision != "16-mixed"  # a fused step cannot be clipped where gradients are scaled
            optimizer = torch.optim.AdamW(trainable, **options, fused=fused)
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / (self.warmup + 1))
            if self.schedule == "constant":
                return warm
            done = max(0.0, (step - self.warmup) / max(1.0, total - self.warmup))
            return warm * (1 + math.cos(done * math.pi)) / 2

        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}
