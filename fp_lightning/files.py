"""Atomic file writes and folder locks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fp_lightning.errors import InputError


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` if the block succeeds.

    A reader never sees a half-written file. Missing folders are created. After an error, the temporary file is
    deleted and `path` is unchanged.

    Raises:
        InputError: a folder of `path` cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another place") from error
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> Path:
    """Write `data` to `path` atomically, see `written_beside`, and return `path`."""
    with written_beside(path) as partial:
        partial.write_bytes(data)
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on `folder`, which is created if it is missing.

    The operating system releases the lock if the process ends in any way. There is no lock on Windows.

    Raises:
        InputError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows has no fcntl
            pass
        except OSError as error:
            raise InputError(f"another run is writing to {folder}; wait for it, or choose another folder") from error
        yield
