"""Errors that a user can act on."""


class UserError(ValueError):
    """Bad input. The message is one line that names the file, the value and the remedy.

    ``train.py`` and ``eval.py`` print it without a traceback and exit with status 2.
    """
