"""Text files of users: one way to decode them all."""

from __future__ import annotations

import codecs

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Of 32 bits before those of 16, which are their beginning."""


def decoded(content: bytes, errors: str = "strict") -> str:
    """UTF-8, or what the byte order mark says (Windows' editors and shell write UTF-16). Raises
    UnicodeDecodeError for other encodings.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    return content.decode(encoding, errors)
