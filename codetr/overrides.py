"""What is written on a command line, as Hydra's override grammar reads it."""

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
"""How a list, a dictionary, a quoted text or a function of the grammar begins."""


def readable(arguments: Sequence[str], several: bool = False) -> list[str]:
    """The overrides, with quotes around values that Hydra cannot read without them.

    Its grammar knows letters of ASCII alone, and gives brackets, parentheses, ``=`` and ``~`` a
    meaning, so that ``data.root=größe (1)`` would be an error. Whatever it reads stays as it is, as
    do mistakes in a list, a dictionary or a function: Hydra names those. Where a setting
    may have ``several`` values, as in a sweep, commas separate them, and each is looked at.
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
    """The arguments, so that Hydra takes settings of ``groups`` that its configuration lacks. Of a
    group of which an option is chosen, it has all.
    """
    chosen = {key_of(argument) for argument in arguments}
    open_groups = tuple(f"{group}." for group in groups if group not in chosen)
    return [f"++{a}" if "=" in a and a.startswith(open_groups) else a for a in arguments]


def key_of(override: str) -> str:
    """What an override changes: ``model.backbone`` of ``model/backbone=x``, ``+model.backbone=x``
    and ``~model/backbone@y``.
    """
    name = re.split(r"[@=]", override.lstrip("+~"), maxsplit=1)[0]
    return name.replace("/", ".")


def is_within(key: str, names: Iterable[str]) -> bool:
    """Whether the key is one of ``names`` or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
