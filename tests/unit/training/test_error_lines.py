import errno
import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from codetr.checkpoints.files import read_detector_file
from codetr.checkpoints.official_file import read_official_file
from codetr.commands import train
from codetr.errors import UserError
from codetr.inference.sources import open_source
from codetr.models.backbones.weights import read_weights
from codetr.training.checkpoint_files import AtomicCheckpointIO
from codetr.training.error_lines import (
    RequireFolder,
    one_line,
    one_line_errors,
    print_any_name,
)


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


def part(key: str, **options: object) -> DictConfig:
    """A configuration in which ``key`` says what is built."""
    cfg = OmegaConf.create()
    OmegaConf.update(cfg, key, {"_target_": "fractions.Fraction", **options})
    return OmegaConf.select(cfg, key)


def test_a_part_that_cannot_be_built_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as caught, one_line_errors():
        instantiate(part("model.neck", numerator="a\nb"))
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: model.neck: cannot be built (ValueError: Invalid literal for")
    assert said.count("\n") == 1
    with pytest.raises(SystemExit), one_line_errors():
        instantiate(part("model.neck", denumerator=3))
    assert "denumerator" in capsys.readouterr().err


def test_the_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(InstantiationException), one_line_errors():
        instantiate(part("model.neck", numerator="x"))


def test_broken_interpolations_are_one_line() -> None:
    with pytest.raises(OmegaConfBaseException) as caught:
        _ = OmegaConf.create({"a": {"b": "${no.such}"}}).a.b
    text = one_line(caught.value)
    assert text is not None
    assert text.startswith("a.b: ")
    assert "no.such" in text
    assert "\n" not in text


def test_lightning_says_what_is_wrong_with_its_settings() -> None:
    with pytest.raises(MisconfigurationException) as caught:
        Trainer(devices=0, accelerator="cpu", logger=False)
    assert one_line(caught.value) == " ".join(str(caught.value).split())


@pytest.mark.parametrize("name", ["../../escape", "", "a/b", None])
def test_a_name_that_would_leave_the_runs_folder(
    name: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = OmegaConf.create({"name": name})
    for start in (RequireFolder().on_run_start, RequireFolder().on_multirun_start):
        with pytest.raises(SystemExit) as caught:
            start(config=config)
        assert caught.value.code == 2
        assert capsys.readouterr().err.startswith("error: name=")
    RequireFolder().on_run_start(config=OmegaConf.create({"name": "mine"}))


def test_a_run_without_a_required_key_makes_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    config = OmegaConf.create(
        {"name": "mine", "data": {"root": "???"}, "sweep": {"weights": "???"}}
    )
    with pytest.raises(SystemExit) as caught:
        RequireFolder().on_run_start(config=config)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: data.root is not set: give data.root=FOLDER\n"
    RequireFolder().on_multirun_start(config=config)  # jobs may have values of their own
    config.data.root = "x"
    RequireFolder().on_run_start(config=config)


@pytest.mark.parametrize(
    "read", [read_detector_file, read_official_file, read_weights, open_source]
)
@pytest.mark.parametrize("ending", [".ckpt", ".safetensors", ".pth"])
def test_a_file_name_that_no_system_has(read: Callable[[str], object], ending: str) -> None:
    with pytest.raises(UserError):
        read("x" * 5000 + ending)


def test_a_file_that_the_system_refuses_is_one_line() -> None:
    with pytest.raises(OSError, match="File name too long") as caught:
        Path("x" * 5000).read_bytes()
    text = one_line(caught.value)
    assert text is not None
    assert "File name too long: check its name" in text


def test_a_full_disk_under_a_library_that_names_no_file_is_one_line() -> None:
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(OSError) as caught:  # noqa: PT011
        file.write(b"a")
    text = one_line(caught.value)
    assert text is not None
    assert text.startswith("No space left on device, so that the last file is not whole")


REFUSALS = (errno.EROFS, errno.EACCES, errno.ENOSPC)
"""What the system says where nothing can be written. It is simulated: root may write anywhere."""


def refuse(patch: pytest.MonkeyPatch, folder: Path, number: int, *names: str) -> None:
    """Let these methods of paths below ``folder`` fail."""

    def refused(real: Callable[..., object]) -> Callable[..., object]:
        def method(self: Path, *args: object, **options: object) -> object:
            if self.is_relative_to(folder):
                raise OSError(number, os.strerror(number), str(self))
            return real(self, *args, **options)

        return method

    for name in names:
        patch.setattr(Path, name, refused(getattr(Path, name)))


@pytest.mark.parametrize("number", REFUSALS)
def test_where_hydra_cannot_make_the_run_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    runs = tmp_path / "runs"
    monkeypatch.setattr(sys, "argv", ["train.py", "name=a", f"paths.runs={runs}"])
    refuse(monkeypatch, runs, number, "mkdir")
    with pytest.raises(SystemExit) as caught:
        train.main()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {runs}")
    assert os.strerror(number) in line


@pytest.mark.parametrize("number", REFUSALS)
def test_where_a_checkpoint_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Neither may anything be removed there."""
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"earlier")

    def refused(file: object, mode: str) -> None:
        raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr("codetr.writing._Raw", refused)
    refuse(monkeypatch, tmp_path, number, "unlink")
    with pytest.raises(UserError, match=r"last\.ckpt: cannot be written \(") as caught:
        AtomicCheckpointIO().save_checkpoint({"a": torch.ones(2)}, path)
    assert os.strerror(number) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"earlier"


@pytest.mark.parametrize("words", [["train", "--help"], ["predict", "--cfg", "job"]])
def test_a_reader_that_leaves_ends_a_command_without_a_word(words: list[str]) -> None:
    """As in ``codetr-train --help | head``."""
    command, *rest = words
    code = f"import sys; sys.argv[1:] = {rest}; from codetr.commands.{command} import main; main()"
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


PRINTING = """
from codetr.training.error_lines import one_line_errors
with one_line_errors():
    print("text", flush=True)
"""


def test_a_closed_socket_ends_a_command_without_a_word() -> None:
    """A service manager reads stdout through one."""
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        ended = subprocess.run(
            [sys.executable, "-c", PRINTING], stdout=theirs, stderr=subprocess.PIPE
        )
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_command_runs_without_stdout() -> None:
    """As in ``codetr-train >&-``: Python then has no ``sys.stdout``."""
    command = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, PRINTING]
    ended = subprocess.run(command, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_other_broken_pipes_keep_their_traceback() -> None:
    with pytest.raises(BrokenPipeError), one_line_errors():
        raise BrokenPipeError
