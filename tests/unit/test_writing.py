"""A file is replaced whole or not at all."""

import errno
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import zeros

from codetr.checkpoints.files import DetectorFile, RunRecord, write_detector_file
from codetr.classes import ClassList
from codetr.data.derived import write_derived
from codetr.errors import UserError
from codetr.training.checkpoint_files import AtomicCheckpointIO
from codetr.training.csv_logger import CsvLogger
from codetr.writing import new_folder, remove_parts, replacing, write_text


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes: writing fails as it does on a full
    disk. The limit also holds for a log file that pytest writes to, so it ends with the block.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        with replacing(tmp_path / "sub/a.bin") as file:
            file.write(content)
            assert content == b"old" or files(tmp_path / "sub")["a.bin"] == b"old"
        assert files(tmp_path / "sub") == {"a.bin": content}


def test_links_are_followed_by_text_and_not_by_checkpoints(tmp_path: Path) -> None:
    """As root, output=/dev/stdout would replace the link otherwise."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there/a").write_text("old")
    (tmp_path / "link").symlink_to("there/a")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert files(tmp_path / "there") == {"a": b"new"}
    checkpoint(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink()
    assert files(tmp_path / "there") == {"a": b"new"}


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, RuntimeError])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")

    def write() -> None:
        with replacing(tmp_path / "a.bin") as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        write()
    assert files(tmp_path) == {"a.bin": b"old"}


READ_ONLY = """
mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$1" -c "$2" "$0"
"""
WRITES = """
import sys
from pathlib import Path
from codetr.errors import UserError
from codetr.writing import new_folder, remove_parts, replacing

def write(name):
    with replacing(folder / name) as file:
        file.write(b"new")

folder = Path(sys.argv[1])
for what in (lambda: write("a.bin"), lambda: write("sub/b.bin"), lambda: remove_parts(folder)):
    try:
        what()
    except UserError as error:
        print(error)
"""


def test_a_read_only_file_system_is_one_line(tmp_path: Path) -> None:
    """Mounted in a namespace of its own, where the machine allows it: not even root can write."""
    left = {"a.bin": b"old", "c.bin.part": b"half"}
    for name, content in left.items():
        (tmp_path / name).write_bytes(content)
    command = ["unshare", "-rm", "sh", "-ec", READ_ONLY, str(tmp_path), sys.executable, WRITES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare")
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"not allowed here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    expected = ("a.bin", "sub/b.bin", "c.bin.part")
    for line, name in zip(lines, expected, strict=True):
        assert line.startswith(f"{tmp_path / name}: cannot be written (Read-only file system)")
    assert files(tmp_path) == left


def test_nothing_is_written_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Least of all in the folder of temporary files, which may be on another file system."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    AtomicCheckpointIO().save_checkpoint({"a": zeros(3)}, tmp_path / "run/last.ckpt")
    assert os.listdir(tmp_path) == ["run"]
    assert os.listdir(tmp_path / "run") == ["last.ckpt"]


def checkpoint(path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"a": zeros(300_000)}, path)


def detector(path: Path) -> None:
    record = RunRecord(classes=ClassList(names=("a",), category_ids=(1,)))
    write_detector_file(path, DetectorFile(weights={"a": zeros(300_000)}, record=record))


def rows(path: Path) -> None:
    logger = CsvLogger(path.parent)
    logger.log_metrics({"loss": 1.0}, 1)
    logger.save()


def page(path: Path) -> None:
    write_text(path, "a long text\n" * 1000)


def program(path: Path) -> None:
    """As ``codetr-export``; where torch.export writes the file itself, a full disk aborts it."""
    layer = torch.export.export(torch.nn.Linear(2, 2), (zeros(1, 2),))
    with replacing(path) as file:
        torch.export.save(layer, file)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (checkpoint, "last.ckpt"),
        (detector, "model.safetensors"),
        (rows, "metrics.csv"),
        (page, "sweep.md"),
        (program, "model.pt2"),
    ],
)
def test_a_full_disk_is_one_line_and_costs_nothing(
    write: Callable[[Path], None],
    name: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / name
    path.write_text("step,loss\n0,1.0\n")
    with (
        full_disk(16),
        pytest.raises(UserError, match=rf"{name}: cannot be written \(File too large\)"),
    ):
        write(path)
    assert files(tmp_path) == {name: b"step,loss\n0,1.0\n"}


SHORT = (16, 500, 1000, 10**5, 10**6, -1)
"""Bytes that there is room for; negative: short of the whole file."""


@pytest.mark.parametrize("room", SHORT)
@pytest.mark.parametrize("write", [checkpoint, detector])
def test_a_disk_that_is_full_at_any_byte(
    write: Callable[[Path], None], room: int, tmp_path: Path
) -> None:
    path = tmp_path / "last.ckpt"
    write(path)
    size = path.stat().st_size
    path.write_bytes(b"old")
    limit = min(room if room > 0 else size + room, size - 1)
    message = r"last.ckpt: cannot be written \(File too large\)"
    with full_disk(limit), pytest.raises(UserError, match=message):
        write(path)
    assert files(tmp_path) == {"last.ckpt": b"old"}


def test_a_folder_that_cannot_be_synced_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network and FUSE mounts refuse it, when the file is in place already."""
    sync = os.fsync

    def refuse(number: int) -> None:
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(number)

    monkeypatch.setattr(os, "fsync", refuse)
    checkpoint(tmp_path / "last.ckpt")
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_derived_annotations_on_a_full_disk(
    tmp_path: Path,
) -> None:
    message = r"cannot be written \(File too large\): free some space"
    with full_disk(16), pytest.raises(UserError, match=message):
        write_derived(tmp_path, Path("a.json"), ["a long text"] * 1000)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match=r"run/last\.ckpt: cannot be written"):
        checkpoint(tmp_path / "run/last.ckpt")


def test_parts_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    detector(tmp_path / "model.safetensors")
    (tmp_path / "last.ckpt.part").write_bytes(b"half")
    remove_parts(tmp_path)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors")["a"].shape == (300_000,)


def test_a_folder_is_there_when_it_is_full(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    with pytest.raises(FileNotFoundError), new_folder(folder) as unfinished:
        (unfinished / "x").rename(unfinished / "y")
    assert not list(folder.parent.iterdir())
    with new_folder(folder) as unfinished:
        (unfinished / "x").write_text("first")
        assert not folder.exists()
        with new_folder(folder) as other:
            (other / "x").write_text("second")
    assert (folder / "x").read_text() == "second", "whoever is ready first"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert list(folder.parent.iterdir()) == [folder]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), new_folder(tmp_path / "file"):
        pass
