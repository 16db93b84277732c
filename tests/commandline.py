"""`fp-lightning` and other work in separate processes that are forked from one with all imports done.

The commands, their signals and exit statuses are those of new interpreters, but importing, which would take most of
the time of such tests, happens once per test process.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import current_process, get_context
from pathlib import Path
from types import SimpleNamespace

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("fp_lightning.cli.trainer", "fp_lightning.training.module", "datamodules", "callbacks"),
        *("fp_lightning.pairs.build", "fp_lightning.scenes.procedural"),
    ]
)


class Command:
    """A running `fp-lightning WORDS`.

    Args:
        words: command and options.
        errors: file for stderr.
        output: file for stdout; None discards it.
        environment: variables that are set on top of this process's.
    """

    def __init__(
        self,
        words: list[str],
        errors: Path,
        output: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.errors = Path(errors)
        self.errors.parent.mkdir(parents=True, exist_ok=True)
        self.errors.touch()
        arguments = [*map(str, words)], str(errors), str(output or os.devnull), os.environ | (environment or {})
        self._process = CONTEXT.Process(target=_run, args=arguments)
        self._process.start()

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self._process.pid, number)

    def wait(self, timeout: float = 300) -> int:
        """Return the exit status; a command that takes more than `timeout` seconds is killed and fails the test."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"still running after {timeout} s:\n{self.errors.read_text()}")
        return self._process.exitcode

    def finish(self) -> str:
        """Wait for its success; return stderr."""
        status = self.wait()
        assert status == 0, self.errors.read_text()
        return self.errors.read_text()


def _run(words: list[str], errors: str, output: str, environment: dict[str, str]) -> None:
    _set_environment(environment)
    for path, descriptor in ((output, 1), (errors, 2)):
        with open(path, "a") as file:
            os.dup2(file.fileno(), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal; background jobs of a shell ignore it
    sys.argv = ["fp-lightning", *words]
    sys.modules["__main__"].__spec__ = find_spec("fp_lightning.__main__")  # what DDP starts its other ranks with
    from fp_lightning.cli.main import main

    sys.exit(main())


def call_forked(function: Callable, *arguments, environment: dict[str, str] | None = None) -> None:
    """Call a function of a test in a process; it must return.

    Args:
        function: one that can be pickled.
        arguments: its arguments.
        environment: variables that are set on top of this process's.
    """
    process = CONTEXT.Process(target=_call, args=(os.environ | (environment or {}), function, arguments))
    process.start()
    process.join(1200)
    assert process.exitcode == 0


def _call(environment: dict[str, str], function: Callable, arguments: tuple) -> None:
    _set_environment(environment)
    function(*arguments)


def _set_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def run_forked(command: list[str], stdout, stderr, env: dict[str, str]) -> SimpleNamespace:
    """Run a command of a sweep, in place of `subprocess.run`."""
    assert command[:3] == [sys.executable, "-m", "fp_lightning"] and stdout is stderr
    log = Path(stdout.name)
    return SimpleNamespace(returncode=Command(command[3:], log, log, env).wait(1200))


def fork_pools(monkeypatch) -> None:
    """Fork the processes of all pools that build pairs."""
    forked = SimpleNamespace(get_context=lambda method: CONTEXT, current_process=current_process)
    for module in ("fp_lightning.pairs.engines", "fp_lightning.scenes.procedural"):
        monkeypatch.setattr(f"{module}.multiprocessing", forked)


def fork_sweeps() -> None:
    """Fork the commands of all sweeps of this process."""
    import fp_lightning.training.sweep

    fp_lightning.training.sweep.subprocess = SimpleNamespace(run=run_forked)
