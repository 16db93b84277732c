"""How a command ends that fails: one line on stderr, and an exit status."""

from __future__ import annotations

import codecs
import io
import locale
import os
import re
import signal
import sys
import traceback
from pathlib import Path

from fp_lightning.errors import InputError
from fp_lightning.files import describe, system_error

SWITCH = "FP_LIGHTNING_TRACEBACK"  # environment variable; 1 shows the traceback of every failure
LONGEST = 300  # characters of an unexpected message
INTERRUPTED, CLOSED = 128 + signal.SIGINT, 128 + 13  # exit statuses that shells use; 13 is SIGPIPE
_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|std::bad_alloc", re.IGNORECASE)


def require_utf8() -> None:
    """Start this process again in Python's UTF-8 mode if the locale has another encoding: recipes and names are UTF-8.

    Only on systems where a process can replace itself.
    """
    if os.name == "posix" and not sys.flags.utf8_mode and codecs.lookup(locale.getencoding()).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def printable() -> None:
    """Let stdout and stderr print every text: what the terminal cannot show becomes an escape such as \\\\xd7."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def report(error: BaseException) -> int:
    """Print the line of a failure and return the exit status: 1, 130 after Ctrl+C, 141 if the reader of a pipe left.

    With the environment variable FP_LIGHTNING_TRACEBACK=1, the traceback comes before the line.
    """
    if isinstance(error, BrokenPipeError) and _reader_left():
        return CLOSED
    if os.environ.get(SWITCH) == "1":
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        print("fp-lightning: interrupted", file=sys.stderr)
        return INTERRUPTED
    print(f"fp-lightning: {line(error)}", file=sys.stderr)
    return 1


def line(error: BaseException) -> str:
    """Return one line that says what is wrong and what to do."""
    text = _flat(error)
    if isinstance(error, InputError):
        return text
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return (
            f"out of memory ({text or 'the machine has no more'}); use a smaller size or batch, fewer workers, or a "
            "recipe of recipes/hardware: `fp-lightning plan` predicts what a recipe takes"
        )
    if (refused := system_error(error)) is not None:
        return describe(refused)
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package not in ("", "fp_lightning", *sys.stdlib_module_names):
        return f"this needs {package}: pip install '{package}', or leave out what needs it"
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return f"{error.object!r} has bytes that are not UTF-8, which a library used here cannot take; rename it"
    if isinstance(error, ValueError | ImportError) and "proxy" in text.lower():
        return f"{text}; correct http_proxy, https_proxy and all_proxy in the environment, or unset them"
    where = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(where[-1].filename).name}:{where[-1].lineno}" if where else ""
    return (
        f"{type(error).__name__}{place}: {text[:LONGEST]}; this is a bug of fp_lightning: please report it with the "
        f"traceback, which {SWITCH}=1 shows"
    )


def _flat(error: BaseException) -> str:
    """Return the message on one line. A loader process wraps it in its traceback, of which the last line is left."""
    text = str(error)
    if "\nOriginal Traceback" in text:
        text = re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1])
    return " ".join(text.split())


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory, of a GPU or of the machine. It raises RuntimeError."""
    return isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error)))


def _reader_left() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads; close it then, so that the interpreter ends in silence."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            return True
    return False
