"""The last checkpoint, from which a run resumes, also after a signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.progress import _BatchProgress
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from fp_lightning.errors import InputError

NAME = "last"
STOPPING = b"\nstopping after this step, with a checkpoint; press Ctrl+C again to stop at once\n"


class LastCheckpoint(ModelCheckpoint):
    """Write `last.ckpt` after every validation, at the end of training, on SIGTERM and on Ctrl+C.

    Without validation, it is written after every epoch. Lightning's `save_last` skips validations that are not the
    best, and the steps after the last validation.

    SLURM and clouds send SIGTERM before they take a machine away, and Ctrl+C in a terminal sends SIGINT. For SLURM
    jobs that request SIGUSR1 before their end, Lightning writes a checkpoint and requeues the job. Here, all three
    signals wait for the end of the optimiser step or of the validation batch, and all processes agree on it. A
    resumed run is therefore equal to an uninterrupted one. An interrupted validation is repeated from its start. A
    second Ctrl+C stops at once.

    SIGTERM and SIGINT end training with Lightning's `SIGTERMException`, whose argument is the signal's number.

    Args:
        dirpath: folder of the checkpoint.
    """

    def __init__(self, dirpath: str | Path) -> None:
        super().__init__(dirpath=dirpath, filename=NAME, enable_version_counter=False)
        self._signal = 0  # number of the signal received, or 0
        self._stopped_by = 0  # number of the signal that ended training, or 0
        self._before: dict[int, Callable[[int, Any], Any]] = {}  # Lightning's handlers

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adapt Lightning's progress within the epoch to another batch size or number of ranks.

        Raises:
            InputError: the data differ, or the checkpoint is not at a whole step of this run.
        """
        data = getattr(trainer, "datamodule", None)
        if trainer.state.fn != "fit" or data is None:
            return
        loop, loader, steps = checkpoint["loops"]["fit_loop"], data.train_dataloader(), trainer.accumulate_grad_batches
        for state in loop["state_dict"].get("combined_loader", []):
            batches, current = loader.batches(state), loop["epoch_loop.batch_progress"]["current"]
            if batches % steps:
                raise InputError(
                    f"the checkpoint is {batches} batches into an epoch, not a multiple of "
                    f"trainer.accumulate_grad_batches {steps}; choose one that divides {batches}"
                )
            reached = batches or (len(loader) if current["ready"] else 0)
            current.update({name: value + reached - current["ready"] for name, value in current.items()})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._signal = 0
        if threading.current_thread() is threading.main_thread():  # Lightning restores the original handlers
            names = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # Windows has two
            for number in (getattr(signal, name) for name in names):
                if callable(before := signal.getsignal(number)):
                    self._before[number] = before
                    signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: Any) -> None:
        """Note a signal until the end of the step."""
        self._signal = max(self._signal, number)
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                os.write(2, STOPPING)  # print is not safe in a signal handler

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == trainer.max_steps:
            self._write(trainer)
            return
        loop = trainer.fit_loop.epoch_loop
        assert trainer.fit_loop._data_fetcher is not None
        validates = loop._should_check_val_fx(trainer.fit_loop._data_fetcher) and not loop.val_loop.skip
        if not validates and not loop._should_accumulate():
            self._handle_signal(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save at the end of an epoch, unless `max_steps` ends within it: a resumed run would skip the rest."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do not count the batch at which a repeated validation was stopped.

        Lightning keeps it as begun and never finished, and takes every later checkpoint for one within a validation.
        """
        super().on_validation_start(trainer, pl_module)
        if trainer.state.fn == "fit":
            progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            state = progress.state_dict()
            progress.load_state_dict({**state, "total": dict.fromkeys(state["total"], state["total"]["completed"])})

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            with repeated_when_resumed(trainer.fit_loop.epoch_loop.val_loop.batch_progress):
                self._handle_signal(trainer)

    def _handle_signal(self, trainer: L.Trainer) -> None:
        """Act on a signal that any of the processes has received."""
        number = self._signal
        if trainer.world_size > 1:
            received = torch.tensor(float(number), device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(received, reduce_op="max"))
        self._signal = 0
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stopped_by = number
            self._write(trainer)
            trainer._signal_connector.received_sigterm = True  # Lightning logs the step and stops
        elif number:
            trainer.strategy.checkpoint_io.background = False  # type: ignore[attr-defined]  # the job ends right after
            self._before[number](number, None)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, SIGTERMException) and self._stopped_by:
            exception.args = (self._stopped_by,)

    def _write(self, trainer: L.Trainer) -> None:
        """Save `last.ckpt`."""
        if not getattr(trainer, "fast_dev_run", False):
            assert self.dirpath is not None, "the constructor sets it"
            trainer.save_checkpoint(Path(self.dirpath) / f"{NAME}{self.FILE_EXTENSION}")


@contextmanager
def repeated_when_resumed(progress: _BatchProgress) -> Iterator[None]:
    """Within the block, show a validation as being in its first batch, so that a resumed run repeats it."""
    state = progress.state_dict()
    done = state["total"]["completed"]
    restarted = [
        {"ready": number + 1, "started": number + 1, "processed": number, "completed": number} for number in (done, 0)
    ]
    progress.load_state_dict({**state, "total": restarted[0], "current": restarted[1]})
    try:
        yield
    finally:
        progress.load_state_dict(state)
