"""Checkpoints written in the background, and never half."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.files import written_beside

WAITING = 2  # copies of a state in the memory of the host: those of best.ckpt and last.ckpt


class CheckpointWriter(TorchCheckpointIO):
    """Writes checkpoints beside their place, renames them when they are on the disk, and meanwhile lets training go on.

    The training loop stands still for as long as the state is copied to the memory of the host, of which a third
    copy waits for the first to be written. An error shows at the next checkpoint or at the end. Addresses of object
    storage are written as Lightning does.

    Args:
        background: false writes before training goes on.

    Raises:
        InputError: a checkpoint cannot be written; that which was there before is whole.
    """

    def __init__(self, background: bool = True) -> None:
        self.background = background
        self._pending: list[Future[None]] = []
        self._executor: ThreadPoolExecutor | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        elif not self.background:
            write(checkpoint, Path(path))
        else:
            self._wait(WAITING - 1)
            copy = apply_to_collection(checkpoint, Tensor, _on_host)
            self._executor = self._executor or ThreadPoolExecutor(1, "checkpoints")
            self._pending.append(self._executor.submit(write, copy, Path(path)))

    def load_checkpoint(self, *args: Any, **options: Any) -> dict[str, Any]:
        self._wait()
        return super().load_checkpoint(*args, **options)

    def remove_checkpoint(self, path: str | Path) -> None:
        self._wait()
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        try:
            self._wait()
        finally:
            if self._executor is not None:
                self._executor.shutdown()
            self._executor, self._pending = None, []

    def _wait(self, most: int = 0) -> None:
        """Until no more than `most` are to be written; raises what went wrong."""
        while len(self._pending) > most or (self._pending and self._pending[0].done()):
            self._pending.pop(0).result()


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Raises InputError: the disk is full, or the folder cannot be written."""
    try:
        with written_beside(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        reason = "the disk seems to be full" if cause is None else cause.strerror
        raise InputError(
            f"cannot write {path}: {reason}; the checkpoint of before is whole: make room and go on from it with "
            f"--ckpt_path {path}"
        ) from error


def _on_host(tensor: Tensor) -> Tensor:
    """A copy that training does not change."""
    return tensor.detach().to("cpu", copy=True)
