"""A file of few bytes that holds millions of pixels is refused by its header."""

import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from codetr.data import images
from codetr.data.annotations import load_annotations
from codetr.data.coco import CocoDetection
from codetr.data.images import ImageError, PixelRules, read_annotated, read_image
from codetr.inference.sources import Broken, open_source

SIDE = 13_000


def large_png(path: Path, side: int = SIDE) -> Path:
    """A black PNG of ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    return path


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = large_png(tmp_path_factory.mktemp("bomb") / "a.png")
    assert path.stat().st_size < 2**20
    return path


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding is a failure."""

    def load(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(images, "as_rgb", load)


def annotated(folder: Path, height: int, width: int) -> Path:
    path = folder / "a.json"
    path.write_text(
        f'{{"images": [{{"id": 1, "file_name": "a.png", "height": {height}, "width": {width}}}],'
        '"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9],'
        '"segmentation": [[1, 1, 9, 1, 9, 9]]}], "categories": [{"id": 1, "name": "a"}]}'
    )
    return path


def test_another_size_than_annotated(bomb: Path, tmp_path: Path, no_decoding: None) -> None:
    found = CocoDetection(load_annotations(annotated(tmp_path, 20, 30)), bomb.parent)
    with pytest.raises(ImageError, match=r"is 13000x13000 pixels .* says 30x20"):
        found.sample(0)
    with pytest.raises(ImageError, match="has 13000x13000 pixels, the annotations say 30x20"):
        read_annotated(bomb, (20, 30))


def test_masks_are_not_drawn_before_the_size_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    loaded = load_annotations(annotated(tmp_path, 10**6, 10**6), segmentations=True)
    monkeypatch.setattr(type(loaded), "targets", lambda *_: pytest.fail("drawn"))
    with pytest.raises(ImageError, match="30x20"):
        CocoDetection(loaded, tmp_path).sample(0)
    with pytest.raises(ImageError, match="1000000x1000000"):
        CocoDetection(loaded, tmp_path, tolerate_broken=True).sample(0)


def test_the_limit_comes_before_the_pixels(bomb: Path, no_decoding: None) -> None:
    with pytest.raises(ImageError, match=r"data\.max_megapixels=170"):
        read_image(bomb, PixelRules(max_megapixels=100))
    (found,) = replace(open_source(str(bomb)), rules=PixelRules(max_megapixels=100))
    assert isinstance(found, Broken)


MEASURE = """
import resource, sys
from pathlib import Path
from codetr.data.images import ImageError, read_annotated
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_annotated(Path(sys.argv[1]), (20, 30))
except ImageError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_refusing_takes_no_memory(bomb: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(bomb)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 2**15, "KiB"
