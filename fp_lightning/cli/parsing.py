"""What the parsers of all commands share."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from fp_lightning.errors import InputError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show "(default: VALUE)" after options that have a default, unless their text names it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = action.default is None or action.default is False or action.default == []
        if unset or "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError, one line, for words that it does not accept. Its help shows defaults.

    The parsers of its subcommands are of this class too.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter} | options)

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        raise InputError(f"{message}; `{self.prog} --help` lists the options")


def make_parser(command: str, text: str) -> Parser:
    """Return the parser of `fp-lightning COMMAND`."""
    return Parser(prog=f"fp-lightning {command}", description=text)
