"""Image sources given by the user: a file, a folder, a pattern, or a video."""

from __future__ import annotations

import glob
import importlib.util
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from codetr.data.files import FileIndex, counted_suffixes, is_image, missing_plugin
from codetr.data.images import DEFAULT_RULES, ImageError, PixelRules, require_smaller
from codetr.data.regions import Regions, open_image
from codetr.errors import UserError

log = logging.getLogger(__name__)

VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


@dataclass(frozen=True, kw_only=True)
class Frame:
    """An image: its ``name`` relative to the source; its ``number`` in a video."""

    name: str
    image: Regions
    number: int | None = None


@dataclass(frozen=True, kw_only=True)
class Broken:
    """An image that could not be read, and the reason (one line)."""

    name: str
    reason: str


@dataclass(frozen=True)
class ImageFiles:
    """Image files below ``root``, read one by one during iteration."""

    root: Path
    paths: tuple[Path, ...]
    rules: PixelRules = DEFAULT_RULES

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame | Broken]:
        for path in self.paths:
            name = path.relative_to(self.root).as_posix()
            try:
                yield Frame(name=name, image=open_image(path, self.rules))
            except ImageError as error:
                yield Broken(name=name, reason=str(error))


@dataclass(frozen=True)
class Video:
    """The frames of a video file, decoded by PyAV and rotated according to its metadata.

    Raises UserError if it is not a video; frames with more pixels than ``rules`` allow are not
    decoded.
    """

    path: Path
    rules: PixelRules = DEFAULT_RULES

    def __post_init__(self) -> None:
        require_av(self.path)
        self.rate  # noqa: B018 - opens the file, and fails if it is not a video

    def __len__(self) -> int:
        """The number of frames according to the file; 0 if unknown."""
        import av

        with av.open(str(self.path)) as container:
            return int(container.streams.video[0].frames)

    @property
    def rate(self) -> float:
        """Frames per second."""
        import av

        try:
            with av.open(str(self.path)) as container:
                return float(container.streams.video[0].average_rate or 25)
        except (av.FFmpegError, IndexError) as error:
            raise UserError(
                f"{self.path}: not a video that can be read ({error}): convert it to MP4"
            ) from None

    def __iter__(self) -> Iterator[Frame | Broken]:
        import av

        number = 0
        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                require_smaller(self.path, (stream.height, stream.width), self.rules)
                for frame in container.decode(video=0):
                    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                    quarters = round(frame.rotation / 90)  # counterclockwise, as rot90 counts
                    image = torch.rot90(pixels, quarters, (1, 2))
                    yield Frame(name=self.path.name, image=image, number=number)
                    number += 1
        except av.FFmpegError as error:  # the frames before it are valid
            reason = f"{self.path}: cannot be decoded from frame {number} on ({error})"
            yield Broken(name=f"{self.path.name}, frame {number}", reason=reason)


Source = ImageFiles | Video


def open_source(name: str) -> Source:
    """Open a source: a video, an image, all images in a folder and its subfolders, or those that
    match a pattern such as ``photos/*.jpg`` (``**`` for any folders).

    Raises UserError if there are no images.
    """
    path = Path(name).expanduser()
    if os.path.isdir(path):
        return _files(path, sorted(path.rglob("*")), name)
    if os.path.isfile(path):
        if path.suffix.lower() in VIDEOS:
            return Video(path)
        return ImageFiles(path.parent, (path,))
    if not glob.has_magic(name):
        near = _otherwise_spelled(path)
        if near is None:
            raise UserError(f"source={name}: no such file or folder")
        log.info("source=%s: the file is called %s", name, near.name)
        return open_source(str(near))
    found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    plain = path.parts[:-1]
    wild = next((i for i, part in enumerate(plain) if glob.has_magic(part)), len(plain))
    return _files(Path(*plain[:wild]), found, name)


def _files(root: Path, paths: list[Path], name: str) -> ImageFiles:
    files = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    images = tuple(path for path in files if is_image(path.name))
    others = counted_suffixes(path.name for path in files if not is_image(path.name))
    hint = missing_plugin(*(path.name for path in files))
    if not images:
        only = f", only {others}" if others else ""
        raise UserError(
            f"source={name}: holds no image that Pillow opens{only}: "
            f"{hint or 'give images, or convert them to JPEG or PNG'}"
        )
    if others:
        log.info(
            "source=%s: skipped %s that are no images which Pillow opens%s",
            *(name, others, hint and f"; {hint}"),
        )
    return ImageFiles(root, images)


def _otherwise_spelled(path: Path) -> Path | None:
    """The only image whose name is similar to ``path``, if any; see ``FileIndex``."""
    if not os.path.isdir(path.parent):
        return None
    index = FileIndex(file.name for file in path.parent.iterdir() if is_image(file.name))
    found = index.at(path.name)
    near = path.parent / found[0] if len(found) == 1 else None
    return near if near is not None and near.is_file() else None


def require_av(path: Path) -> None:
    """Raise UserError if PyAV is not installed."""
    if importlib.util.find_spec("av") is None:
        raise UserError(f"{path}: videos need PyAV: pip install 'codetr[video]'")
