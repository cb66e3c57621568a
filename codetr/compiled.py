"""Loops compiled by numba at their first call; no other compiler is needed.

Import a module with such loops only where they are called: importing numba takes half a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: ``numba.njit`` with ``options``, cached on disk if possible, without the GIL, and
    with IEEE 754 division by zero.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        common = {"nogil": True, "error_model": "numpy", **options}
        try:
            return numba.njit(cache=True, **common)(function)
        except RuntimeError:  # no writable cache folder: each process compiles anew
            return numba.njit(**common)(function)

    return decorate
