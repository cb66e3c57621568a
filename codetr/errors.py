"""Errors that a user can act on."""


class UserError(ValueError):
    """Bad input. The message is one line that names the file, the value and the remedy.

    ``train.py`` and ``eval.py`` print it without a traceback and exit with status 2.
    """


def user_error(error: BaseException | None) -> UserError | None:
    """The UserError that ``error`` is or was caused by (Hydra wraps errors of constructors)."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__
    return None
