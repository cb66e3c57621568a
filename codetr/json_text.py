"""Parsing of JSON files, with errors that name the position."""

from __future__ import annotations

import json
import reprlib
from typing import Any

from codetr.errors import UserError


def parse_json(content: bytes, name: str) -> Any:
    """The value of a JSON text in UTF-8, UTF-16 or UTF-32, with or without byte order mark. Raises
    UserError, starting with the file's ``name``, if it is invalid.
    """
    try:
        return json.loads(content)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text, byte {error.start}: save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{name} is not valid JSON, line {error.lineno} column {error.colno} ({error.msg}): "
            "repair the file or export it again"
        ) from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise UserError(
            f"{name} is not usable JSON ({reprlib.repr(str(error))}): repair the file"
        ) from None
