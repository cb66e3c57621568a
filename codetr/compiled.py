"""Loops that numba compiles when they first run: no compiler is needed, numba brings its own.

A module with such loops is imported where they are called: numba takes half a second to import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator for ``numba.njit`` with ``options``, that keeps what it compiled where it can and
    lets other threads run meanwhile. Divisions by zero give what IEEE 754 says.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        common = {"nogil": True, "error_model": "numpy", **options}
        try:
            return numba.njit(cache=True, **common)(function)
        except RuntimeError:  # no folder to keep the result in: compiled anew in every process
            return numba.njit(**common)(function)

    return decorate
