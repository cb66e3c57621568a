"""Decoding of users' text files."""

from __future__ import annotations

import codecs

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks and encodings; UTF-32 comes first, since its mark begins with that of UTF-16."""


def decoded(content: bytes, errors: str = "strict") -> str:
    """The text of ``content`` in UTF-8, or the encoding of its byte order mark (editors and the
    shell of Windows write UTF-16). Raises UnicodeDecodeError for other encodings.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    return content.decode(encoding, errors)
