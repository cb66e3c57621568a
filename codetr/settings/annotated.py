"""The kinds of constructor arguments, from their annotations."""

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
    """``kinds`` of a constructor's arguments by name, None where any value is valid; ``open``:
    whether it takes further keyword arguments.
    """

    kinds: Mapping[str, Kind | None]
    open: bool


@cache
def arguments_of(target: str) -> Arguments:
    """The arguments of the class or function with the dotted name ``target``. An error while it is
    imported is passed on.
    """
    found: Callable[..., Any] = pkgutil.resolve_name(target)
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # some built-ins have no signature
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
    except Exception:  # e.g. names imported under TYPE_CHECKING only
        return {}


def _kind_of(annotation: Any) -> Kind | None:
    """The kind of a plain type or a union of plain types, None for any other annotation."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [_kind_of(part) for part in typing.get_args(annotation)]
        if None in kinds:
            return None
        first, *rest = (kind for kind in kinds if kind is not None)
        for kind in rest:
            first = first | kind
        return first
    return _KINDS.get(annotation)
