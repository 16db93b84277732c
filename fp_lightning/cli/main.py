"""`fp-lightning`: dispatch to the commands. Heavy imports wait for the command."""

from __future__ import annotations

import sys
from importlib import import_module

from fp_lightning.cli.commands import COMMANDS, TRAINER_COMMANDS
from fp_lightning.cli.failures import SWITCH, printable, report, require_utf8
from fp_lightning.cli.packages import prefer_own_packages
from fp_lightning.errors import InputError
from fp_lightning.training.recipe_files import resolve_recipes


def main() -> int:
    """Run `sys.argv` and return the exit status. Every failure is one line on stderr and status 1."""
    require_utf8()
    printable()
    arguments = sys.argv[1:]
    try:
        status = _run_and_flush(arguments)
    except BaseException as error:
        return report(error)
    if status is not None:
        sys.exit(status)
    return 0 if arguments else 1


def _run_and_flush(arguments: list[str]) -> str | int | None:
    """Run a command and write what it printed. Return the exit status that it asked for, such as argparse's."""
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(usage())
        else:
            prefer_own_packages()
            run(arguments[0], arguments[1:])
    except SystemExit as request:
        return request.code
    finally:
        if not isinstance(sys.exception(), Exception):
            sys.stdout.flush()
    return None


def usage() -> str:
    """Return the list of commands."""
    texts = TRAINER_COMMANDS | {name: text for name, (text, _, _) in COMMANDS.items()}
    width = max(map(len, texts))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in texts.items())
    return (
        f"usage: fp-lightning COMMAND [options]\n\n{lines}\n\nfp-lightning COMMAND --help lists the options.\n"
        f"With {SWITCH}=1 in the environment, a failure shows its traceback."
    )


def run(command: str, arguments: list[str]) -> None:
    """Run one command.

    Raises:
        InputError: the command is unknown, or its input is bad.
    """
    if command in TRAINER_COMMANDS:
        from fp_lightning.cli.trainer import run as run_trainer

        sys.argv[1:] = [command, *resolve_recipes(arguments)]  # DDP starts its other ranks from sys.argv
        run_trainer(command)
    elif command in COMMANDS:
        _, module, function = COMMANDS[command]
        getattr(import_module(f"fp_lightning.cli.{module}"), function)(arguments)
    else:
        raise InputError(f"unknown command {command}; choose {', '.join((*TRAINER_COMMANDS, *COMMANDS))}")
