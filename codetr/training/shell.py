"""Errors of a user, shown as one line."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from codetr.errors import user_error


def print_any_name() -> None:
    """Let stdout take file names that are not UTF-8: such bytes are printed as ``\\udcff``, as
    stderr does.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a UserError as one line on stderr and exit with status 2; others pass through."""
    try:
        yield
    except Exception as error:
        found = user_error(error)
        if found is None:
            raise
        print(f"error: {found}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
