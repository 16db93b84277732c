"""Files appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fp_lightning.errors import InputError


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place when the block ends without an error; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> Path:
    """Writes `data` beside `path`, then renames; returns `path`."""
    with written_beside(path) as partial:
        partial.write_bytes(data)
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of `folder`, which it makes; the lock ends with the process, however it ends.

    Raises:
        InputError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on Windows
            pass
        except OSError as error:
            raise InputError(f"another run is writing to {folder}; wait for it, or choose another folder") from error
        yield
