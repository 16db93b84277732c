"""Atomic checkpoints, written in the background."""

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

MAX_PENDING = 2  # copies of the training state in host memory: those of best.ckpt and last.ckpt


class CheckpointWriter(TorchCheckpointIO):
    """Write checkpoints atomically while training continues.

    A checkpoint is written to a temporary file, flushed to disk and renamed. Training pauses only while the state is
    copied to host memory. At most two copies are pending; a third waits until the first is written. An error is
    raised at the next checkpoint or at the end of training. Object-storage URLs are written as Lightning does.

    Args:
        background: write in the background; if false, training waits for the disk.

    Raises:
        InputError: a checkpoint cannot be written. The previous checkpoint at the same path is intact.
    """

    def __init__(self, background: bool = True) -> None:
        self.background = background
        self._pending: list[Future[None]] = []
        self._executor: ThreadPoolExecutor | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint; it may still be pending when this returns."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        elif not self.background:
            write(checkpoint, Path(path))
        else:
            self._wait(MAX_PENDING - 1)
            copy = apply_to_collection(checkpoint, Tensor, _on_host)
            self._executor = self._executor or ThreadPoolExecutor(1, "checkpoints")
            self._pending.append(self._executor.submit(write, copy, Path(path)))

    def load_checkpoint(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Load a checkpoint, after all pending ones are written."""
        self._wait()
        return super().load_checkpoint(*args, **options)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint, after all pending ones are written."""
        self._wait()
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        """Wait until all pending checkpoints are written, then stop the background thread."""
        try:
            self._wait()
        finally:
            if self._executor is not None:
                self._executor.shutdown()
            self._executor, self._pending = None, []

    def _wait(self, limit: int = 0) -> None:
        """Block until at most `limit` checkpoints are pending; raise the error of a failed write."""
        while len(self._pending) > limit or (self._pending and self._pending[0].done()):
            self._pending.pop(0).result()


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint to a temporary file, flush it to disk and rename it to `path`.

    Raises:
        InputError: the disk is full, or the folder is not writable.
    """
    try:
        with written_beside(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except (InputError, OSError, RuntimeError) as error:  # torch raises RuntimeError on a full disk
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        reason = "the disk seems to be full" if cause is None else cause.strerror
        raise InputError(
            f"cannot write {path}: {reason}; the previous checkpoint is intact: free disk space, then continue with "
            f"--ckpt_path {path}"
        ) from error


def _on_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to host memory, so that training cannot change it."""
    return tensor.detach().to("cpu", copy=True)
