"""Write edited images beside their targets after each validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from fp_lightning.evaluation.samples import ReportSample, contact_sheet
from fp_lightning.files import write_atomic
from fp_lightning.media.pictures import encode
from fp_lightning.types import EditBatch


class ImageGrid(Callback):
    """Write `<run>/samples/step-000123.png` while fitting: source | signal | edited | target, one row per sample.

    The run is the trainer's default root folder. `validation_step` returns the images under "edited", float
    [b, 3, h, w] in [-1, 1]; if it returns none, nothing is written.

    Args:
        every_n_val: write after the first validation and then after every n-th.
        max_samples: maximum number of rows, the first samples of the main process.
    """

    def __init__(self, every_n_val: int = 1, max_samples: int = 8) -> None:
        self.every_n_val, self.max_samples = every_n_val, max_samples
        self._validations = 0
        self._samples: list[ReportSample] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._samples = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EditBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        missing = self.max_samples - len(self._samples)
        if self._wanted(trainer) and missing > 0 and isinstance(outputs, dict) and outputs.get("edited") is not None:
            self._samples += ReportSample.of(outputs["edited"], batch, missing)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._wanted(trainer) and self._samples:
            path = Path(trainer.default_root_dir) / "samples" / f"step-{trainer.global_step:06d}.png"
            write_atomic(path, encode(contact_sheet(self._samples)))
        self._validations += not trainer.sanity_checking
        self._samples = []

    def _wanted(self, trainer: Trainer) -> bool:
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        return fitting and trainer.is_global_zero and self._validations % self.every_n_val == 0
