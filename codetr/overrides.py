"""Command-line overrides in Hydra's grammar."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

_PARTS = re.compile(r"(?P<key>\+{0,2}[A-Za-z_][\w./@$-]*)=(?P<value>.+)", re.ASCII | re.DOTALL)
_STRUCTURED = re.compile(
    r"[\[{'\"]|(choice|range|interval|glob|shuffle|sort|tag|extend_list|int|float|str|bool)\("
)
"""The beginning of a list, a dictionary, a quoted string or a function of the grammar."""


def readable(arguments: Sequence[str], several: bool = False) -> list[str]:
    """The overrides, with quotes around values that Hydra cannot parse without them.

    Its grammar only allows ASCII letters in unquoted values, and brackets, parentheses, ``=`` and
    ``~`` have a meaning, so that ``data.root=größe (1)`` would be an error. Values that it can
    parse do not change, nor do errors in a list, a dictionary or a function, which Hydra reports.
    With ``several``, as in a sweep, values are separated by commas and quoted one by one.
    """
    return [_readable(argument, several) for argument in arguments]


def _readable(argument: str, several: bool) -> str:
    parts = _PARTS.fullmatch(argument)
    if parts is None or _is_read(argument) or _STRUCTURED.match(parts["value"]):
        return argument
    key, value = parts["key"], parts["value"]
    values = value.split(",") if several else [value]
    return f"{key}={','.join(v if _is_read(f'{key}={v}') else _quoted(v) for v in values)}"


def _is_read(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _quoted(value: str) -> str:
    return QuotedString(text=value, quote=Quote.single).with_quotes()


def adding(arguments: Sequence[str], groups: Iterable[str]) -> list[str]:
    """The arguments, with ``++`` before settings of ``groups``, so that Hydra accepts keys that its
    configuration lacks. A group with a chosen option has all its keys and is left out.
    """
    chosen = {key_of(argument) for argument in arguments}
    open_groups = tuple(f"{group}." for group in groups if group not in chosen)
    return [f"++{a}" if "=" in a and a.startswith(open_groups) else a for a in arguments]


def key_of(override: str) -> str:
    """The key that an override changes: ``model.backbone`` for ``model/backbone=x``,
    ``+model.backbone=x`` and ``~model/backbone@y``.
    """
    name = re.split(r"[@=]", override.lstrip("+~"), maxsplit=1)[0]
    return name.replace("/", ".")


def is_within(key: str, names: Iterable[str]) -> bool:
    """Whether the key is one of ``names`` or below one of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
