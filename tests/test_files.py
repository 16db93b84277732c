"""Files and folders: what the operating system refuses is one line, and nothing half-written remains."""

import errno
import fcntl
import os

import pytest

from fp_lightning.errors import InputError
from fp_lightning.files import (
    locked,
    read_json,
    require_writable,
    system_error,
    write_atomic,
    written_beside,
    written_folder,
)


def refuse(number):
    """A function that raises the error of the operating system with this number."""

    def raised(*args, **options):
        raise OSError(number, os.strerror(number))

    return raised


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free disk space"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EROFS, "choose a place that can be written"),
        (errno.EIO, "check the disk"),
    ],
)
def test_a_refused_write_names_path_reason_and_remedy_and_keeps_the_old_file(tmp_path, monkeypatch, number, remedy):
    path = write_atomic(tmp_path / "a.json", b"old")
    monkeypatch.setattr("pathlib.Path.write_bytes", refuse(number))
    with pytest.raises(InputError, match=f"cannot write {path}: {os.strerror(number)}; .*{remedy}"):
        write_atomic(path, b"new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(InputError, match=f"cannot write {tmp_path}: Is a directory; it is a folder; choose a file"):
        write_atomic(tmp_path, b"new")


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(InputError, match="File exists; a part of it is a file; choose a folder"):
        write_atomic(tmp_path / "a" / "b", b"new")
    with pytest.raises(InputError, match=f"cannot write {tmp_path}/a/b/c/d: Not a directory"):
        write_atomic(tmp_path / "a" / "b" / "c" / "d", b"new")
    with pytest.raises(InputError, match="choose another folder with --out"):
        require_writable(tmp_path / "a", "--out")


def test_names_as_long_as_the_file_system_allows_are_written_and_longer_ones_refused(tmp_path):
    for name in ("x" * 251 + ".png", "照" * 83 + ".é.png"[:6]):
        name = os.fsdecode(os.fsencode(name)[:255].decode(errors="ignore").encode())
        assert write_atomic(tmp_path / name, b"1").read_bytes() == b"1"
    with pytest.raises(InputError, match="File name too long; choose a shorter name"):
        write_atomic(tmp_path / ("x" * 256), b"1")


def test_names_that_are_not_utf_8_are_written(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.json")
    assert read_json(write_atomic(path, b"[1]")) == [1]


def test_errors_of_libraries_are_recognised_by_their_number():
    assert system_error(RuntimeError("I/O error: No space left on device (os error 28)")).errno == errno.ENOSPC
    assert system_error(ValueError("no")) is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    with pytest.raises(InputError, match=r"without locks \(.*choose a folder on a local disk"), locked(tmp_path):
        pass


def test_a_held_lock_is_told(tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match="another run is writing"), locked(tmp_path):
        pass


def test_a_failed_folder_leaves_nothing(tmp_path):
    def write():
        with written_folder(tmp_path / "out") as partial:
            (partial / "a").touch()
            refuse(errno.ENOSPC)()

    with pytest.raises(InputError, match=f"cannot write {tmp_path / 'out'}: No space"):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path} is not readable JSON .*; delete it"):
        read_json(path)


def test_errors_of_what_is_read_meanwhile_pass_through(tmp_path):
    def copy(source):
        with written_beside(tmp_path / "copy") as partial:
            partial.write_bytes(source.read_bytes())

    with pytest.raises(FileNotFoundError):
        copy(tmp_path / "none")
    assert not list(tmp_path.iterdir())
