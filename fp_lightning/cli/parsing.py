"""What the parsers of all commands share."""

from __future__ import annotations

import argparse


def make_parser(command: str, text: str) -> argparse.ArgumentParser:
    """Return the parser of `fp-lightning COMMAND`, whose help shows defaults."""
    return argparse.ArgumentParser(
        prog=f"fp-lightning {command}", description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
