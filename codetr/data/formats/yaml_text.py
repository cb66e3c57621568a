"""Parsing YAML with all scalars as strings.

A class named ``no``, ``1.0``, ``010``, ``1:30`` or ``null`` keeps its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from codetr.data.formats.content import short_repr
from codetr.errors import UserError

_MAX_DEPTH = 8


def parse_yaml(text: str, path: Path) -> Any:
    """The content of a YAML document as lists, dicts and strings; None if it is empty.

    Raises UserError, mentioning ``path``, for a document that is invalid or has duplicate keys, and
    for features that could exhaust memory: aliases and deep nesting.
    """
    try:
        _require_plain(text, path)
        node = yaml.compose(text, yaml.SafeLoader)
        return None if node is None else _value(node, path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = short_repr(getattr(error, "problem", None) or "unreadable characters")
        raise UserError(f"{path} is not valid YAML{line} ({reason}): repair it") from None
    except (ValueError, RecursionError) as error:  # invalid escape sequences
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not valid YAML ({short_repr(str(error))}): repair it") from None


def _require_plain(text: str, path: Path) -> None:
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{path} has aliases (*name): replace them by their values")
        if depth > _MAX_DEPTH:
            raise UserError(f"{path} is nested more than {_MAX_DEPTH} deep: it only needs names")


def _value(node: yaml.Node, path: Path) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, path) for item in node.value]
    if not isinstance(node, yaml.MappingNode):
        return node.value
    found: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(
                f"{path}, line {key.start_mark.line + 1}: a key is not a string: give names as a "
                "list, or number: name"
            )
        if key.value in found:
            raise UserError(
                f"{path}, line {key.start_mark.line + 1}: has the key {short_repr(key.value)} "
                "twice: keep one"
            )
        found[key.value] = _value(value, path)
    return found
