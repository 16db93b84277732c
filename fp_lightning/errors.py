"""The exception for errors that the user can fix."""


class InputError(Exception):
    """Invalid input. The message is one line that names the value and the remedy.

    The command line prints the message without a traceback and exits with status 1. This is not a
    ValueError because argument parsers catch ValueError to try another type.
    """
