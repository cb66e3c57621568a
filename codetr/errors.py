"""Errors that a user can act on."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(ValueError):
    """Bad input. The message is one line that names the file, the value and the remedy.

    ``train.py`` and ``eval.py`` print it without a traceback and exit with status 2.
    """


def first_line(error: BaseException | str) -> str:
    """The first line of an error's text, or its type if it has none, for messages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def user_error(error: BaseException | None) -> UserError | None:
    """The UserError that ``error`` is or was caused by (Hydra wraps errors of constructors)."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__
    return None


def abbreviated(names: Sequence[str], limit: int = 3) -> str:
    """The first ``limit`` names of a list, for messages."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
