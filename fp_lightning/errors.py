"""One exception for everything a user can mend."""


class InputError(Exception):
    """Bad input. The message is one line that names the value and the remedy; the command line
    prints it without a traceback and exits with status 1. No ValueError, which argument parsers
    swallow to try an alternative."""
