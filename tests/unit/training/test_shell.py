import pytest

from codetr.errors import UserError
from codetr.training.shell import one_line_errors


def test_user_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise RuntimeError("hydra's wrapping") from UserError("x.json: is broken: mend it")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: x.json: is broken: mend it\n"


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), one_line_errors():
        _ = 1 / 0
