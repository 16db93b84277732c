"""Optimisers with warm-up, shared by the training of editors, priors and the VAE."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast, get_args

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fp_lightning.errors import InputError
from fp_lightning.model.editor import FramePainter
from fp_lightning.training.muon import Muon

logger = logging.getLogger(__name__)

Schedule = Literal["constant", "cosine"]
OptimizerName = Literal["adamw", "adamw_8bit", "muon"]


def check_last_validation(trainer: L.Trainer) -> None:
    """Check that training ends with a validation, for modules that save their network after each one.

    Raises:
        InputError: `max_steps` is not a multiple of `val_check_interval`; the last steps would not be saved.
    """
    steps, every = trainer.max_steps, trainer.val_check_interval
    if steps > 0 and isinstance(every, int) and trainer.check_val_every_n_epoch is None and steps % every:
        raise InputError(
            f"the network is saved after each validation, but trainer.max_steps {steps} is not a multiple of "
            f"trainer.val_check_interval {every}; set it to {steps - steps % every or every}"
        )


def adamw_8bit() -> Callable[..., Optimizer]:
    """Return the class `bitsandbytes.optim.AdamW8bit`.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InputError("optimizer adamw_8bit needs bitsandbytes: pip install 'fp_lightning[quant]'") from error
    return AdamW8bit


def make_optimizer(
    name: OptimizerName, weights: Iterable[nn.Parameter], fused: bool = True, **options: Any
) -> Optimizer:
    """Make the optimiser of a fit.

    Args:
        name: "adamw"; "adamw_8bit" of bitsandbytes, which stores moments in one byte instead of four (Dettmers et al.
            2021, arXiv 2110.02861); or "muon", see `Muon`.
        weights: the weights to train.
        fused: whether AdamW updates all weights in one kernel.
        options: `lr`, `betas` and `weight_decay`.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    if name == "adamw_8bit":
        return adamw_8bit()(weights, **options)
    return Muon(weights, **options) if name == "muon" else torch.optim.AdamW(weights, **options, fused=fused)


def warmed_up(optimizer: Optimizer, warmup: int, schedule: Schedule, total: float) -> LambdaLR:
    """Return a schedule of the learning rate: linear warm-up, then constant or cosine decay to zero.

    Args:
        warmup: number of optimiser steps of warm-up.
        total: number of optimiser steps of the whole fit.
    """

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / (warmup + 1))
        if schedule == "constant":
            return warm
        done = max(0.0, (step - warmup) / max(1.0, total - warmup))
        return warm * (1 + math.cos(done * math.pi)) / 2

    return LambdaLR(optimizer, factor)


def use_settings(module: L.LightningModule, learning_rate: float, **settings: Any) -> None:
    """Train a resumed run with its own settings, not with those in the checkpoint, and log what differs.

    Args:
        module: has one optimiser and a schedule by `warmed_up`, both as the checkpoint left them.
        learning_rate: peak learning rate.
        settings: further settings of the optimiser's groups, for example `betas`.
    """
    optimizer = cast(Optimizer, module.optimizers(use_pl_optimizer=False))
    schedule = cast(LambdaLR, module.lr_schedulers())
    changed: dict[str, None] = {}
    for group in optimizer.param_groups:
        for name, value in {"initial_lr": learning_rate, **settings}.items():
            if group[name] != value:
                changed[f"{name.replace('initial_lr', 'learning_rate')} {value} (checkpoint: {group[name]})"] = None
                group[name] = value
        group["lr"] = learning_rate * schedule.lr_lambdas[0](schedule.last_epoch)
    schedule.base_lrs = [learning_rate for _ in optimizer.param_groups]
    if changed and module.trainer.is_global_zero:
        logger.warning("going on with %s", ", ".join(changed))


class OptimisedModule(L.LightningModule):
    """Base of modules that train an editor or parts of it: optimiser of trainable weights, schedule, clipping.

    Args:
        editor: the network; its weights with `requires_grad` are trained.
        learning_rate: peak learning rate, reached after warm-up.
        betas, weight_decay: settings of AdamW.
        warmup: number of optimiser steps of linear warm-up.
        schedule: "constant" (the paper's), or "cosine" to zero over the whole fit.
        optimizer: see `make_optimizer`.
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

    def on_train_start(self) -> None:
        """See `use_settings`."""
        use_settings(self, self.learning_rate, betas=tuple(self.betas), weight_decay=self.weight_decay)

    def setup(self, stage: str) -> None:
        """Check the settings; warn if the precision loses small updates.

        Raises:
            InputError: the schedule or optimizer is unknown, schedule "cosine" has no last step, or the network does
                not accept the size of the data.
        """
        if self.schedule not in get_args(Schedule):
            raise InputError(f"schedule must be constant or cosine, got {self.schedule!r}")
        if self.schedule == "cosine" and stage == "fit" and self.trainer.max_steps == self.trainer.max_epochs == -1:
            raise InputError("schedule cosine needs an end: set trainer.max_steps or trainer.max_epochs")
        if self.optimizer not in get_args(OptimizerName):
            raise InputError(f"optimizer must be {' or '.join(get_args(OptimizerName))}, got {self.optimizer!r}")
        if stage == "fit" and str(self.trainer.precision) in ("bf16-true", "16-true"):
            logger.warning(
                "%s also stores trainable weights in 16 bits, so updates below a few thousandths of a weight are lost; "
                "bf16-mixed stores them in float32, and frozen weights in 16 bits",
                self.trainer.precision,
            )
        size = getattr(getattr(self.trainer, "datamodule", None), "size", None)
        if size is not None:
            self.editor.check_size(tuple(size))

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as Lightning does, and also for a fused optimiser under bf16-mixed.

        Lightning refuses that for every mixed precision, but only scaled gradients (16-mixed) rule it out.
        """
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or GradClipAlgorithmType.NORM)
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser of the trainable weights and its schedule, which advances every step."""
        trainable = [p for p in self.editor.parameters() if p.requires_grad]
        options: dict[str, Any] = {
            "lr": self.learning_rate,
            "betas": tuple(self.betas),
            "weight_decay": self.weight_decay,
        }
        fused = self.trainer.precision != "16-mixed"  # a fused step unscales gradients itself, too late to clip
        optimizer = make_optimizer(self.optimizer, trainable, fused, **options)
        rates = warmed_up(optimizer, self.warmup, self.schedule, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}
