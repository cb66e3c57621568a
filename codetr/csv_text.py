"""Texts in CSV files that spreadsheets open."""

from __future__ import annotations

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would take for a formula, which can fetch and run things."""


def as_cell(text: str) -> str:
    """A text as a cell: with an apostrophe before it, which spreadsheets do not show, where it
    would be a formula. File names and names of classes are texts of strangers.
    """
    return f"'{text}" if text.startswith(FORMULA) else text
