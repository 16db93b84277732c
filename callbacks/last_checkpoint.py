"""The checkpoint to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

NAME = "last"


class LastCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` after every validation, and after the last of `max_steps` steps.

    Lightning's `save_last` skips a validation that was not the best, and whatever trains after the last validation.

    Args:
        dirpath: folder of the checkpoint.
    """

    def __init__(self, dirpath: str | Path) -> None:
        super().__init__(dirpath=dirpath, filename=NAME, enable_version_counter=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == trainer.max_steps and not getattr(trainer, "fast_dev_run", False):
            assert self.dirpath is not None, "it is given"
            trainer.save_checkpoint(Path(self.dirpath) / f"{NAME}{self.FILE_EXTENSION}")
