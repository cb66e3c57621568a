"""Writers of prediction results: pictures, videos, COCO JSON and CSV."""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from codetr.classes import ClassList
from codetr.csv_text import as_cell
from codetr.evaluation.detection_metric import EncodedMasks, detection_rows
from codetr.evaluation.encoding import encode
from codetr.evaluation.report import prediction_records, write_json
from codetr.inference.prediction import Prediction
from codetr.inference.sources import Frame, Source, Video

WRITABLE = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
COLUMNS = ("file", "frame", "class", "score", "x_min", "y_min", "x_max", "y_max")


class Writer(Protocol):
    """Writes the predictions for one image after the other."""

    def add(self, frame: Frame, found: Prediction) -> None:
        """Write or store the predictions ``found`` in ``frame``."""
        ...

    def close(self) -> None:
        """Finish the files."""
        ...


class CocoFiles:
    """``images.json`` (a COCO data set without boxes) and ``predictions.json`` (COCO results for
    it, including run lengths of masks); image ids start at 1.
    """

    def __init__(self, folder: Path, classes: ClassList) -> None:
        self.folder, self.classes = folder, classes
        self._images: list[dict[str, Any]] = []
        self._rows: dict[int, Tensor] = {}
        self._masks: dict[int, EncodedMasks] = {}

    def add(self, frame: Frame, found: Prediction) -> None:
        """See ``Writer``."""
        height, width = frame.image.shape[-2:]
        number = len(self._images) + 1
        entry = {"id": number, "file_name": frame.name, "width": width, "height": height}
        if frame.number is not None:
            entry["frame"] = frame.number
        self._images.append(entry)
        self._rows[number] = detection_rows(found)
        if found.cells is not None:
            self._masks[number] = encode(found, (height, width))

    def close(self) -> None:
        """See ``Writer``."""
        categories = [
            {"id": number, "name": name}
            for number, name in zip(self.classes.category_ids, self.classes.names, strict=True)
        ]
        data = {"images": self._images, "annotations": [], "categories": categories}
        write_json(self.folder / "images.json", data)
        records = prediction_records(self._rows, self.classes, self._masks)
        write_json(self.folder / "predictions.json", records)


class CsvFile:
    """``predictions.csv``: one line per box, corners in pixels; UTF-8. Undecodable bytes of file
    names are written as ``\\udcff``, as in the JSON files.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "predictions.csv"
        self._file = path.open("w", newline="", encoding="utf-8", errors="backslashreplace")
        self._csv = csv.writer(self._file)
        self._csv.writerow(COLUMNS)

    def add(self, frame: Frame, found: Prediction) -> None:
        """See ``Writer``."""
        number = "" if frame.number is None else frame.number
        boxes, scores = found.boxes_xyxy_px.tolist(), found.scores.tolist()
        for name, score, box in zip(found.names, scores, boxes, strict=True):
            corners = [f"{value:.2f}" for value in box]
            cells = as_cell(frame.name), number, as_cell(name), f"{score:.5f}", *corners
            self._csv.writerow(cells)

    def close(self) -> None:
        """See ``Writer``."""
        self._file.close()


class Pictures:
    """``images/NAME``: the image with its boxes, in the format of the original if Pillow can write
    it, else as PNG.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "images"

    def add(self, frame: Frame, found: Prediction) -> None:
        """See ``Writer``."""
        path = self.folder / frame.name
        if path.suffix.lower() not in WRITABLE:
            path = path.with_name(f"{path.name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        found.plot().save(path)

    def close(self) -> None:
        """See ``Writer``."""


class AnnotatedVideo:
    """``NAME.mp4`` (H.264): every frame with its boxes, at the original frame rate, without
    sound.
    """

    def __init__(self, folder: Path, video: Video) -> None:
        import av

        self.path = folder / f"{video.path.stem}.mp4"
        self._container = av.open(str(self.path), "w")
        rate = Fraction(video.rate).limit_denominator(1001)  # 29.97 is 30000/1001
        self._stream: Any = self._container.add_stream("libx264", rate=rate)
        self._stream.pix_fmt = "yuv420p"
        self._started = False

    def add(self, frame: Frame, found: Prediction) -> None:
        """See ``Writer``."""
        import av

        picture = found.drawn()
        height, width = (side // 2 * 2 for side in picture.shape[-2:])  # yuv420p needs even sides
        if not self._started:
            self._stream.height, self._stream.width, self._started = height, width, True
        pixels = picture[:, :height, :width].permute(1, 2, 0).contiguous().numpy()
        for packet in self._stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
            self._container.mux(packet)

    def close(self) -> None:
        """See ``Writer``."""
        if self._started:
            for packet in self._stream.encode():
                self._container.mux(packet)
        self._container.close()


def writers(folder: Path, source: Source, classes: ClassList, pictures: bool) -> list[Writer]:
    """The writers for a source into ``folder``, including annotated ``pictures`` if requested."""
    made: list[Writer] = [CocoFiles(folder, classes), CsvFile(folder)]
    if pictures and isinstance(source, Video):
        made.append(AnnotatedVideo(folder, source))
    elif pictures:
        made.append(Pictures(folder))
    return made
