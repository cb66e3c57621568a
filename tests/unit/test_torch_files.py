"""Files that declare more than they hold are refused before they are read into memory."""

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from codetr.checkpoints.files import RunRecord, read_detector_file
from codetr.checkpoints.pickled import read_pickled
from codetr.classes import ClassList
from codetr.errors import UserError
from codetr.models.backbones.weights import read_weights

COUNT = 2**26
"""Numbers of the tensors, 256 MiB in memory; the files have less than 1 MiB."""
LIMIT = 2**26
"""Bytes of memory that refusing a file may take beyond what reading a small one takes."""


def compressed(path: Path) -> None:
    """An archive of ``torch.save``, written anew with deflated members."""
    plain = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(COUNT)}}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))


def repeated(path: Path) -> None:
    """One number that is a tensor of many."""
    record = RunRecord(classes=ClassList(names=("a",), category_ids=(1,))).as_dict()
    state = {"detector.a": torch.zeros(1).expand(COUNT)}
    torch.save({"state_dict": state, RunRecord.KEY: record}, path)


def shared(path: Path) -> None:
    """Many members of an archive that are the same bytes."""
    members = {f"{i}": torch.zeros(2**14) for i in range(4 * COUNT // 2**16)}
    torch.save({"state_dict": {"a": torch.zeros(2**14)}}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.fp.seek(archive.start_dir)
        first = archive.getinfo(f"{path.stem}/data/0")
        for name in members:
            copy = zipfile.ZipInfo(f"{path.stem}/data/{name}x")
            copy.file_size = copy.compress_size = first.file_size
            copy.CRC, copy.header_offset = first.CRC, first.header_offset
            archive.filelist.append(copy)
        archive._didModify = True


def claimed(path: Path) -> None:
    """The older layout, with a storage that is said to be large."""
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    old = pickle.dumps(3, 2)[2:-1]
    at = content.index(b"cpu") + 3
    found = content.index(old, at)
    path.write_bytes(content[:found] + b"J" + struct.pack("<i", COUNT) + content[found + 2 :])


def refused(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    assert len(text) < 500
    return text


READERS = (read_pickled, read_detector_file, read_weights)
"""Of official files, of our own and of backbones."""


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize("make", [compressed, repeated, shared], ids=lambda make: make.__name__)
def test_a_file_that_would_grow_is_refused(tmp_path: Path, read: Callable, make: Callable) -> None:
    path = tmp_path / "bomb.ckpt"
    make(path)
    assert path.stat().st_size < 2**20
    text = refused(read, path)
    assert any(word in text for word in ("compressed", "declares", "numbers")), text


def test_the_older_layout_says_how_much_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    claimed(path)
    assert "declares" in refused(read_pickled, path)


def test_storages_without_their_numbers_are_refused(tmp_path: Path) -> None:
    """Memory that nobody filled is no weight."""
    path = tmp_path / "cut.pth"
    torch.save(
        {"a": torch.zeros(3), "b": torch.zeros(4)}, path, _use_new_zipfile_serialization=False
    )
    content = path.read_bytes()
    keys = pickle.loads(content[content.rindex(b"\x80\x02]") :])
    short = content.replace(pickle.dumps(keys, 2), pickle.dumps(keys[:1], 2))
    assert short != content
    path.write_bytes(short)
    assert "truncated" in refused(read_pickled, path)


def test_a_long_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(struct.pack("<Q", 2**25) + b" " * 2**10)
    for read in (read_detector_file, read_weights):
        assert "header" in refused(read, path)


def test_a_long_record_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "bomb.safetensors"
    text = "[" + ",".join(["[]"] * 2**21) + "]"
    save_file({"a": torch.zeros(1)}, path, metadata={RunRecord.KEY: text})
    assert "damaged" in refused(read_detector_file, path)


def test_mappings_within_themselves_end(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    content: dict = {"model": {}}
    content["model"]["model"] = content
    torch.save(content, path)
    assert "no named tensors" in refused(read_weights, path)


MEASURE = """
import resource, sys
from codetr.checkpoints.pickled import read_pickled
from codetr.errors import UserError
from pathlib import Path
for path in sys.argv[1:]:
    try:
        read_pickled(Path(path))
    except UserError:
        pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_refusing_takes_no_memory(tmp_path: Path) -> None:
    """In a process of its own, beside a small file that is read."""
    torch.save({"a": torch.zeros(3)}, tmp_path / "small.pth")
    paths = [tmp_path / "small.pth"]
    for make in (compressed, repeated, shared, claimed):
        paths.append(tmp_path / f"{make.__name__}.pth")
        make(paths[-1])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    small, *peaks = map(int, done.stdout.split())
    assert max(peaks) - small < LIMIT
