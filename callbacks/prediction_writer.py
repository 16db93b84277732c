"""Write predicted edits as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from fp_lightning.files import require_writable, write_atomic
from fp_lightning.media.images import unsqueeze
from fp_lightning.media.pictures import encode
from fp_lightning.types import EditBatch


class PredictionWriter(BasePredictionWriter):
    """Write each edit to `<out>/NAME.png`, at the size of the input image (`EditBatch.full_size`).

    `predict_step` returns float [b, 3, h, w] in [-1, 1], or a list of images of different sizes. They are resized
    before rounding, bicubic and antialiased.

    Args:
        out: folder; by default `predictions` in the run, which is the trainer's default root folder.
    """

    def __init__(self, out: str | None = None) -> None:
        super().__init__("batch")
        self.out = out
        self._written = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._written = 0
        require_writable(self._folder(trainer), "--trainer.default_root_dir, or with `out` of the PredictionWriter")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor | Sequence[Tensor],
        batch_indices: Sequence[int] | None,
        batch: EditBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        for i, (name, image) in enumerate(zip(batch.name, prediction, strict=True)):
            size = batch.full_size[i] if batch.full_size else (image.shape[-2], image.shape[-1])
            write_atomic(self._folder(trainer) / f"{name}.png", encode(unsqueeze(image.float(), size)))
            self._written += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        count = torch.tensor(float(self._written), device=pl_module.device)
        total = int(trainer.strategy.reduce(count, reduce_op="sum"))
        if trainer.is_global_zero:
            print(f"{total} edited image{'s' * (total != 1)} in {self._folder(trainer)}")

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.out) if self.out else Path(trainer.default_root_dir) / "predictions"
