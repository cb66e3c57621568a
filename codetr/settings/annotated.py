"""What constructors say of their arguments."""

from __future__ import annotations

import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from codetr.settings.kinds import FLAG, NULL, TEXT, Kind, Real, Whole

_LARGE = 10**15
_KINDS: Mapping[Any, Kind] = {
    int: Whole(-_LARGE, _LARGE),
    float: Real(-_LARGE, _LARGE),
    bool: FLAG,
    str: TEXT,
    type(None): NULL,
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """``kinds`` of a constructor's arguments by name, None where any value may do; ``open``: it
    takes others, too.
    """

    kinds: Mapping[str, Kind | None]
    open: bool


@cache
def arguments_of(target: str) -> Arguments:
    """What the constructor or function of that dotted name takes.

    Raises what importing raises where there is none.
    """
    found: Callable[..., Any] = pkgutil.resolve_name(target)
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # built-in ones have none
        return Arguments(kinds={}, open=True)
    hints = _hints(found)
    keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return Arguments(
        kinds={p.name: _kind_of(hints.get(p.name)) for p in parameters if p.kind in keyword},
        open=any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters),
    )


def _hints(found: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(found.__init__ if inspect.isclass(found) else found)
    except Exception:  # names that are imported for type checkers alone
        return {}


def _kind_of(annotation: Any) -> Kind | None:
    """The kind of a plain annotation, None for any other."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [_kind_of(part) for part in typing.get_args(annotation)]
        if None in kinds:
            return None
        first, *rest = (kind for kind in kinds if kind is not None)
        for kind in rest:
            first = first | kind
        return first
    return _KINDS.get(annotation)
