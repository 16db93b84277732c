"""Atomic file writes and folder locks."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fp_lightning.errors import InputError

REMEDIES = {  # error number: what the user can do
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space within your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another place",
    errno.EMFILE: "raise the limit on open files (ulimit -n), or use fewer workers",
    errno.ENFILE: "close other programs, or use fewer workers",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
    errno.EISDIR: "it is a folder; choose a file",
    errno.ENOTDIR: "a part of it is a file; choose a folder",
    errno.EEXIST: "a part of it is a file; choose a folder",
    errno.ENOENT: "check its name",
    errno.EIO: "check the disk, or choose another place",
    errno.ENOMEM: "use fewer workers or a smaller size",
}
LONGEST = 200  # characters of another library's message
MALFORMED = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}  # of flock: another process holds the lock


def system_error(error: BaseException) -> OSError | None:
    """Return the error of the operating system that `error` is or stands for; None if it is of another kind.

    safetensors names it in its message, and PyAV in `errno`.
    """
    if isinstance(error, OSError) and error.errno:
        return error
    found = re.search(r"\bos error (\d+)", str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    if isinstance(number, int) and number in errno.errorcode:
        return OSError(number, os.strerror(number), getattr(error, "filename", None))
    return error if isinstance(error, OSError) else None


def describe(error: OSError, path: object = None) -> str:
    """Return "PATH: reason; remedy" for an error of the operating system.

    Args:
        error: the error.
        path: the file or folder; by default those that the error names.
    """
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    place = str(path) if path is not None else " → ".join(names)
    reason = error.strerror or str(error) or type(error).__name__
    return f"{place}{': ' if place else ''}{reason}; {REMEDIES.get(error.errno or 0, 'choose another place')}"


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` if the block succeeds.

    A reader never sees a half-written file. Missing folders are created. After an error, the temporary file is
    deleted and `path` is unchanged. The temporary name is short, so that `path` may have the longest name that the
    file system allows.

    Raises:
        InputError: the operating system refuses to write: the disk is full, the folder is read-only, `path` is a
            folder, and so on. Errors of other files that the block reads pass through.
    """
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except Exception as error:
        refused = system_error(error)
        if refused is None or not _is_of_writing(refused, partial, path, *path.parents):
            raise
        raise InputError(f"cannot write {describe(refused, path)}") from error


def _partial(path: Path) -> Path:
    """Return a temporary name beside `path`, short even if the name of `path` is long."""
    return path.with_name(f".{os.getpid()}.{abs(hash(path.name)):x}.partial")


def _is_of_writing(error: OSError, *paths: Path) -> bool:
    """Whether an error is not of another file or of a network; errors of writing to an open file name none."""
    if not error.errno or isinstance(error, ConnectionError | TimeoutError):
        return False
    return error.filename is None or Path(os.fsdecode(error.filename)) in paths


def write_atomic(path: Path, data: bytes) -> Path:
    """Write `data` to `path` atomically, see `written_beside`, and return `path`."""
    with written_beside(path) as partial:
        partial.write_bytes(data)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` in UTF-8, see `write_atomic`. Bytes of file names that are not UTF-8 become escapes."""
    return write_atomic(path, text.encode(errors="backslashreplace"))


@contextmanager
def written_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`, and rename it to `out` if the block succeeds.

    Raises:
        InputError: `out` exists and is not an empty folder, or the operating system refuses, see `written_beside`.
    """
    partial = _partial(out)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} exists; choose another name, or remove it first")
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        if out.is_dir():
            out.rmdir()
        os.replace(partial, out)
    except Exception as error:
        if isinstance(error, InputError) or (refused := system_error(error)) is None:
            raise
        raise InputError(f"cannot write {describe(refused, out)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_json(path: Path, remedy: str = "delete it, or copy it again") -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        remedy: what the user can do about a bad file, for the message.

    Raises:
        InputError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} is not readable JSON ({reason}); {remedy}") from error


@contextmanager
def well_formed(path: object, remedy: str = "delete it, or copy it again") -> Iterator[None]:
    """Use the content of a file in a block: what fails there, because the content is not as it was written, is told.

    Args:
        path: the file, for the message.
        remedy: what the user can do about a bad file, for the message.

    Raises:
        InputError: the block raises one of the errors of values, types, keys and indices.
    """
    try:
        yield
    except InputError:
        raise
    except MALFORMED as error:
        raise InputError(f"{path} has content that does not fit ({reason(error)}); {remedy}") from error


def reason(error: BaseException) -> str:
    """Return the class and the message of another library's error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST]}".rstrip(": ")


def require_writable(folder: Path, option: str) -> None:
    """Create `folder` if it is missing, and check that files can be written into it.

    Args:
        folder: the folder.
        option: the option that chooses it, for the message.

    Raises:
        InputError: no file can be written there.
    """
    probe = folder / f".{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write into {folder}: {reason}; choose another folder with {option}") from error


@contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Hold an exclusive lock on `folder`, which is created if it is missing.

    The operating system releases the lock if the process ends in any way. There is no lock on Windows. Locks with
    other file names are independent.

    Raises:
        InputError: another process holds the lock, the file system has no locks, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / name).open("w")
    except OSError as error:
        raise InputError(f"cannot write {describe(error, folder)}") from error
    with handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows has no fcntl
            pass
        except OSError as error:
            if error.errno in HELD:
                raise InputError(f"another run is writing to {folder}; wait for it, or choose another") from error
            raise InputError(
                f"{folder} is on a file system without locks ({error.strerror}), so another run could write there at "
                "the same time; choose a folder on a local disk and copy it afterwards, or mount with locks (flock)"
            ) from error
        yield
