"""The checkpoint to go on from."""

from __future__ import annotations

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

from fp_lightning.errors import InputError

NAME = "last"


class LastCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` after every validation, after the last of `max_steps` steps, and after a step with SIGTERM.

    Where nothing validates it is written after every epoch. Lightning's `save_last` skips a validation that was not
    the best, and whatever trains after the last validation.
    SIGTERM is how SLURM and clouds announce that a machine is about to be taken away; where a SLURM job asks for
    SIGUSR1 before its end, Lightning writes a checkpoint at that signal and queues the job again. Either waits here
    for the end of the optimiser step, or of a validation's batch, on which all processes agree: a run that goes on
    from there is the run that was not stopped. A validation that was cut short is made anew.

    Args:
        dirpath: folder of the checkpoint.
    """

    def __init__(self, dirpath: str | Path) -> None:
        super().__init__(dirpath=dirpath, filename=NAME, enable_version_counter=False)
        self._asked = 0  # number of the signal
        self._before: dict[int, Callable[[int, None], Any]] = {}  # what Lightning does at a signal

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Tells Lightning how far into its epoch a run is that goes on with other batches or another number of ranks.

        Raises:
            InputError: the data is another, or no whole number of steps of this run comes to where that one was.
        """
        data = getattr(trainer, "datamodule", None)
        if trainer.state.fn != "fit" or data is None:
            return
        loop, loader, steps = checkpoint["loops"]["fit_loop"], data.train_dataloader(), trainer.accumulate_grad_batches
        for state in loop["state_dict"].get("combined_loader", []):
            batches, current = loader.batches(state), loop["epoch_loop.batch_progress"]["current"]
            if batches % steps:
                raise InputError(
                    f"the checkpoint is {batches} batches into an epoch, no multiple of "
                    f"trainer.accumulate_grad_batches {steps}; choose one that divides it"
                )
            reached = batches or (len(loader) if current["ready"] else 0)
            current.update({name: value + reached - current["ready"] for name, value in current.items()})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._asked = 0
        if threading.current_thread() is threading.main_thread():  # Lightning puts the handlers of before back
            for number in (signal.SIGTERM, signal.SIGUSR1):
                if callable(before := signal.getsignal(number)):
                    self._before[number] = before
                    signal.signal(number, self._hear)

    def _hear(self, number: int, _: Any) -> None:
        self._asked = max(self._asked, number)

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
            self._obey(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Not where `max_steps` ends within the epoch: a run that goes on from there would leave its rest out."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            with to_be_made_anew(trainer.fit_loop.epoch_loop.val_loop.batch_progress):
                self._obey(trainer)

    def _obey(self, trainer: L.Trainer) -> None:
        """Does what the signal asks for that any of the processes has heard."""
        number = self._asked
        if trainer.world_size > 1:
            heard = torch.tensor(float(number), device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(heard, reduce_op="max"))
        self._asked = 0
        if number == signal.SIGTERM:
            self._write(trainer)
            trainer._signal_connector.received_sigterm = True  # Lightning logs the step and ends
        elif number:
            trainer.strategy.checkpoint_io.background = False  # type: ignore[attr-defined]  # the job ends after it
            self._before[number](number, None)

    def _write(self, trainer: L.Trainer) -> None:
        if not getattr(trainer, "fast_dev_run", False):
            assert self.dirpath is not None, "it is given"
            trainer.save_checkpoint(Path(self.dirpath) / f"{NAME}{self.FILE_EXTENSION}")


@contextmanager
def to_be_made_anew(progress: _BatchProgress) -> Iterator[None]:
    """Meanwhile a validation has progressed no further than into its first batch, where Lightning starts it again."""
    state = progress.state_dict()
    done = state["total"]["completed"]
    begun = [
        {"ready": number + 1, "started": number + 1, "processed": number, "completed": number} for number in (done, 0)
    ]
    progress.load_state_dict({**state, "total": begun[0], "current": begun[1]})
    try:
        yield
    finally:
        progress.load_state_dict(state)
