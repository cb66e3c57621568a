"""What constructors say of their arguments."""

import pytest

from codetr.settings.annotated import arguments_of

HERE = "test_annotated"


class Example:
    def __init__(self, count: int, share: float | None = None, other: "list[int] | None" = None):
        pass


def takes_all(**options: int) -> None:
    pass


def test_plain_annotations_are_kinds() -> None:
    found = arguments_of(f"{HERE}.Example")
    assert not found.open
    kinds = {name: kind for name, kind in found.kinds.items() if name != "self"}
    assert list(kinds) == ["count", "share", "other"]
    count, share = kinds["count"], kinds["share"]
    assert count is not None
    assert share is not None
    assert [count.takes(v) for v in (3, 3.0, None, "3", True)] == [True, False, False, False, False]
    assert [share.takes(v) for v in (3, 3.0, None, "3", True)] == [True, True, True, False, False]
    assert kinds["other"] is None


def test_any_other_options() -> None:
    assert arguments_of(f"{HERE}.takes_all").open


def test_nothing_of_that_name() -> None:
    with pytest.raises(ImportError):
        arguments_of("no.such.Thing")
