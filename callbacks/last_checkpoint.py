"""The checkpoint to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

NAME = "last"


class LastCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` after every validation, after the last of `max_steps` steps, and after a step with SIGTERM.

    Lightning's `save_last` skips a validation that was not the best, and whatever trains after the last validation.
    SIGTERM is how SLURM and clouds announce that a machine is about to be taken away.

    Args:
        dirpath: folder of the checkpoint.
    """

    def __init__(self, dirpath: str | Path) -> None:
        super().__init__(dirpath=dirpath, filename=NAME, enable_version_counter=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == trainer.max_steps:
            self._write(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Lightning numbers steps on from a checkpoint as from one of a validation's end, so this leaves such a one."""
        if not isinstance(exception, SIGTERMException) or trainer.state.fn != TrainerFn.FITTING:
            return
        loop = trainer.fit_loop.epoch_loop
        if trainer.validating:  # it is not finished when the run goes on
            loop.val_loop.increment_progress_to_evaluation_end()
        else:
            loop._batches_that_stepped -= 1
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if not getattr(trainer, "fast_dev_run", False):
            assert self.dirpath is not None, "it is given"
            trainer.save_checkpoint(Path(self.dirpath) / f"{NAME}{self.FILE_EXTENSION}")
