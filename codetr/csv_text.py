"""Text cells of CSV files that are safe to open in a spreadsheet."""

from __future__ import annotations

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a formula, which can run commands and fetch data in a spreadsheet."""


def as_cell(text: str) -> str:
    """A text cell, with a leading apostrophe, which spreadsheets hide, if it would be a formula.
    Names of files and classes come from untrusted data.
    """
    return f"'{text}" if text.startswith(FORMULA) else text
