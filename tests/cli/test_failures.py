"""Every failure is one line on stderr with exit status 1; FP_LIGHTNING_TRACEBACK=1 shows the traceback."""

from __future__ import annotations

import errno
import io
import os
import re
import sys

import pytest
import torch

from fp_lightning.cli import failures, main, packages
from fp_lightning.cli.commands import COMMANDS, TRAINER_COMMANDS
from fp_lightning.cli.packages import prefer_own_packages
from fp_lightning.cli.trainer import _refusal
from fp_lightning.errors import InputError
from fp_lightning.training.recipe_files import recipe_path


@pytest.fixture
def failing(monkeypatch, capsys):
    """Run a command that raises an error; return exit status and stderr."""

    def run(error: BaseException) -> tuple[int, str]:
        def raised(*_):
            raise error

        monkeypatch.setattr(sys, "argv", ["fp-lightning", "clips", "out"])
        monkeypatch.setattr(main, "run", raised)
        return main.main(), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (InputError("a\n  b"), 1, "a b"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), 1, "a.png: No space left on device; free disk"),
        (OSError(errno.EMFILE, "Too many open files"), 1, "Too many open files; raise the limit on open files"),
        (
            IsADirectoryError(errno.EISDIR, "Is a directory", b"caf\xe9"),
            1,
            "caf\\udce9: Is a directory; it is a folder",
        ),
        (MemoryError(), 1, "out of memory (the machine has no more); use a smaller size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, "out of memory (CUDA out of memory. Tried); use"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory (Default"),
        (ModuleNotFoundError("No module named 'wandb.x'", name="wandb.x"), 1, "needs wandb: pip install 'wandb'"),
        (ValueError("Unknown scheme for proxy URL"), 1, "Unknown scheme for proxy URL; correct http_proxy"),
        (KeyError("x"), 1, "KeyError at test_failures.py:"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_one_line(failing, error, status, text):
    found, err = failing(error)
    assert found == status and err.startswith("fp-lightning: ") and err.count("\n") == 1
    assert text in err and "Traceback" not in err


def test_a_bug_says_so_and_names_the_switch(failing):
    assert "this is a bug of fp_lightning" in failing(TypeError("x"))[1]
    assert "FP_LIGHTNING_TRACEBACK=1 shows" in failing(TypeError("x"))[1]


def test_the_switch_shows_the_traceback(failing, monkeypatch):
    monkeypatch.setenv(failures.SWITCH, "1")
    status, err = failing(InputError("bad"))
    assert status == 1 and "Traceback" in err and err.endswith("fp-lightning: bad\n")


def test_the_error_of_a_loader_process_is_its_last_line():
    text = (
        "Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "  File \"a.py\", line 1\nOSError: [Errno 5] Input/output error: 'a'\n"
    )
    assert failures.line(InputError(text)) == "[Errno 5] Input/output error: 'a'"


class FullDisk(io.StringIO):
    def flush(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_output_to_a_full_disk_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fp-lightning", "--help"])
    monkeypatch.setattr(sys, "stdout", FullDisk())
    assert main.main() == 1
    assert capsys.readouterr().err == "fp-lightning: No space left on device; free disk space\n"


def test_a_reader_that_leaves_ends_the_command_in_silence(monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "argv", ["fp-lightning", "--help"])
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    assert main.main() == failures.CLOSED == 141
    assert capfd.readouterr().err == ""


def test_a_terminal_without_unicode_gets_escapes(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    failures.printable()
    print("64 × 64 ≥ …", os.fsdecode(b"caf\xe9"), flush=True)
    assert terminal.buffer.getvalue() == b"64 \\xd7 64 \\u2265 \\u2026 caf\\udce9\n"


@pytest.mark.parametrize(("encoding", "again"), [("ANSI_X3.4-1968", True), ("iso8859-1", True), ("UTF-8", False)])
def test_other_locales_start_again_in_utf_8(monkeypatch, encoding, again):
    started = []
    monkeypatch.setattr("locale.getencoding", lambda: encoding)
    monkeypatch.setattr("os.execv", lambda *words: started.append(words))
    monkeypatch.setenv("PYTHONUTF8", "0")
    failures.require_utf8()
    assert started == [(sys.executable, [sys.executable, *sys.orig_argv[1:]])] * again
    assert os.environ["PYTHONUTF8"] == str(int(again))


def test_refusals_of_lightning_about_slurm_name_the_remedy():
    error = RuntimeError("You set `--ntasks=4` in your SLURM bash script,\nbut this variable is not supported.")
    assert re.search("ntasks=4.*not supported; .*start with srun, or unset SLURM_NTASKS", str(_refusal(error)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1".encode("utf-16"), "is not UTF-8 text"),
        (bytes(range(256)), "is not UTF-8 text"),
        (b"\0\1\2", "is not YAML"),
        (b"trainer:\n  max_steps: [1\n", "is not YAML at line 3, column 1"),
        (b"a: !!python/object:os.system {}\n", "is not YAML at line 1, column 4"),
        (b"- a\n", "is a list; it must hold names and values"),
        (b"", "is empty; it must hold"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"the recipe {path} {message}"):
        recipe_path(str(path))


@pytest.mark.parametrize("command", COMMANDS)
def test_words_that_a_parser_does_not_accept_are_one_line(command, monkeypatch, capsys):
    if command == "plan":
        pytest.skip("plan passes unknown options on to fit")
    monkeypatch.setattr(sys, "argv", ["fp-lightning", command, "--no-such-option"])
    assert main.main() == 1
    assert re.fullmatch(
        rf"fp-lightning: .*; `fp-lightning {command}.* --help` lists the options\n", capsys.readouterr().err
    )


@pytest.mark.parametrize("words", [[c] for c in COMMANDS] + [["convert", "released"], ["study", "build"]], ids=" ".join)
def test_the_help_of_every_option_has_one_form(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fp-lightning", *words, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as done:
        main.main()
    text = capsys.readouterr().out
    assert done.value.code == 0 and f"usage: fp-lightning {words[0]}" in text
    assert not re.search(r"default: None|default: False|default: \[\]|; default:|default.*\(default", text)
    without_help = re.findall(r"^  (--[a-z-]+(?: [A-Z{][^ ]*)*)$(?!\n {10,}\S)", text, re.M)
    assert without_help == []


def test_trainer_commands_call_themselves_fp_lightning(monkeypatch, capsys):
    assert "fit" in TRAINER_COMMANDS
    monkeypatch.setattr(sys, "argv", ["/somewhere/__main__.py", "fit", "--help"])
    with pytest.raises(SystemExit):
        main.main()
    assert capsys.readouterr().out.startswith("usage: fp-lightning fit ")


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A working folder with packages of the same names."""
    for name in packages.NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_own_packages_come_before_others_of_the_same_name(foreign):
    import importlib.util

    assert importlib.util.find_spec("callbacks").origin.startswith(str(foreign))
    prefer_own_packages()
    for name in packages.NAMES:
        assert importlib.util.find_spec(name).origin == str(packages.ROOT / name / "__init__.py")
    assert str(foreign) in sys.path


def test_an_imported_package_of_the_same_name_is_refused(foreign, monkeypatch):
    import importlib

    monkeypatch.setitem(sys.modules, "callbacks", importlib.import_module("callbacks"))
    with pytest.raises(InputError, match=f"{foreign}/callbacks/__init__.py was imported in place of .*; rename it"):
        prefer_own_packages()
