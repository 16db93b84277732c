"""Measure training speed and hardware utilisation, and show a progress bar that does not slow training down."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from fp_lightning.training.counting import CountedOperations

PRECISIONS = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32}


class Throughput(Callback):
    """Log `train/samples_per_second` of all ranks, `train/tflops_per_second` of one rank and `train/mfu`.

    Operations are counted in the second step: those of matrix products, convolutions and attention, forward
    and backward, including recomputation for gradient checkpointing, but not those inside compiled code. The model
    FLOPs utilisation (mfu) is their rate divided by the GPU's peak rate in the training precision; it is logged for
    known GPUs only. Validation time is left out. Unlike Lightning's ThroughputMonitor, this waits for the device only
    when the trainer logs.
    """

    def __init__(self) -> None:
        self.flops: int | None = None  # operations per step
        self._counter: CountedOperations | None = None
        self._begin, self._samples, self._steps, self._seen = 0.0, 0, 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._seen += 1
        if self._seen == 2:
            self._counter = CountedOperations()
            self._counter.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self.flops, self._counter = self._counter.total, None
            self._restart(pl_module)  # counting slows the step down
            return
        self._samples, self._steps = self._samples + len(batch), self._steps + 1
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        _wait(pl_module)
        seconds = time.perf_counter() - self._begin
        figures = {"train/samples_per_second": self._samples * trainer.world_size / seconds}
        if self.flops is not None:
            rate = self.flops * self._steps / seconds
            figures["train/tflops_per_second"] = rate / 1e12
            precision = PRECISIONS.get(str(trainer.precision).split("-")[0])
            available = precision and get_available_flops(pl_module.device, precision)
            if available:
                figures["train/mfu"] = rate / available
        pl_module.log_dict(figures, batch_size=len(batch))
        self._restart(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._counter = None

    def _restart(self, module: LightningModule) -> None:
        """Restart the clock and the counts."""
        _wait(module)
        self._begin, self._samples, self._steps = time.perf_counter(), 0, 0


def _wait(module: LightningModule) -> None:
    """Wait until a GPU has finished."""
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)


class ProgressBar(RichProgressBar):
    """A progress bar that updates losses only when the trainer logs.

    Lightning's own bar reads them at every step and so waits for the device.
    """

    _read: dict[str, Any] | None = None

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics to show, cached between logs."""
        if self._read is None or not trainer.training or trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._read = super().get_metrics(trainer, pl_module)
        return self._read
