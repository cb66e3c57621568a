import io
import sys

import pytest

from codetr.errors import UserError
from codetr.training.shell import one_line_errors, print_any_name


def test_user_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise RuntimeError("hydra's wrapping") from UserError("x.json: is broken: mend it")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: x.json: is broken: mend it\n"


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), one_line_errors():
        _ = 1 / 0


def test_names_that_are_not_utf_8_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    print_any_name()
    print("ü\udcff.jpg", flush=True)
    assert written.getvalue().decode() == "ü\\udcff.jpg\n"
