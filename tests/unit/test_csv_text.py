import pytest

from codetr.csv_text import as_cell


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=cmd|'x'!A0"])
def test_a_formula_becomes_a_text(text: str) -> None:
    assert as_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "cat", "a=b", "1-2", "'=1", " =1"])
def test_other_texts_stay(text: str) -> None:
    assert as_cell(text) == text
