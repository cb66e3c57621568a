"""Videos of turned phones stand upright."""

import struct
from pathlib import Path

import numpy as np
import pytest

from codetr.inference.sources import Frame, Video, open_source

av = pytest.importorskip("av")
ONE = 1 << 16


def write_turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """An MP4 of 128 x 96 pixels whose top left quarter is white, with (a, b, c, d) of the display
    matrix in its track header (ISO 14496-12: x' = a x + c y, y' = b x + d y, y pointing down).
    """
    pixels = np.zeros((96, 128, 3), np.uint8)
    pixels[:48, :64] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44  # after version, times, ids, layer, volume
    a, b, c, d = (value * ONE for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "size", "white"),
    [
        ((1, 0, 0, 1), (96, 128), (0, 0)),
        ((0, 1, -1, 0), (128, 96), (0, 1)),  # clockwise: top left becomes top right
        ((-1, 0, 0, -1), (96, 128), (1, 1)),
        ((0, -1, 1, 0), (128, 96), (1, 0)),
    ],
)
def test_frames_are_turned_upright(
    tmp_path: Path,
    matrix: tuple[int, int, int, int],
    size: tuple[int, int],
    white: tuple[int, int],
) -> None:
    source = open_source(str(write_turned(tmp_path / "a.mp4", matrix)))
    assert isinstance(source, Video)
    [frame] = source
    assert isinstance(frame, Frame)
    height, width = size
    assert frame.image.shape == (3, height, width)
    bright = frame.image.float().mean(0) > 128
    for row in (0, 1):
        for column in (0, 1):
            corner = bright[row * (height - 9) + 4, column * (width - 9) + 4].item()
            assert corner == ((row, column) == white)
