import pytest

from codetr.errors import abbreviated, first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one\ntwo"), "one"),
        (ValueError(" \n"), "ValueError"),
        (KeyError(), "KeyError"),
    ],
)
def test_a_reason_is_one_line_and_never_empty(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_long_lists_are_cut() -> None:
    assert abbreviated(["a", "b", "c"]) == "a, b, c"
    assert abbreviated(("a", "b", "c"), 2) == "a, b, ..."
    assert abbreviated([]) == ""
