"""Small folders of images with boxes, in each format. Every image is 40 pixels wide and 30 high."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

WIDTH, HEIGHT = 40, 30

Boxes = Sequence[tuple[str, tuple[float, float, float, float]]]
"""Class and xyxy edges in pixels from 0."""


def write_images(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (WIDTH, HEIGHT), (i % 256, 90, 200)).save(folder / name)


def voc_xml(boxes: Boxes, filename: str = "a.png", difficult: int = 0) -> str:
    """Pixels from 1, both ends included: left and top edges are one less."""
    objects = "".join(
        f"<object><name>{escape(name)}</name><difficult>{difficult}</difficult><bndbox>"
        f"<xmin>{x0 + 1:g}</xmin><ymin>{y0 + 1:g}</ymin><xmax>{x1:g}</xmax><ymax>{y1:g}</ymax>"
        "</bndbox></object>"
        for name, (x0, y0, x1, y1) in boxes
    )
    return (
        f"<annotation><filename>{escape(filename)}</filename><size><width>{WIDTH}</width>"
        f"<height>{HEIGHT}</height><depth>3</depth></size>{objects}</annotation>"
    )


def write_voc(
    root: Path, images: Mapping[str, Boxes], sets: Mapping[str, Sequence[str]] | None = None
) -> Path:
    """``images`` by stem; ``sets``: stems by list in ImageSets/Main."""
    write_images(root / "JPEGImages", [f"{name}.png" for name in images])
    (root / "Annotations").mkdir()
    for name, boxes in images.items():
        xml = voc_xml(boxes, f"{name}.png")
        (root / "Annotations" / f"{name}.xml").write_text(xml, encoding="utf-8")
    for name, stems in (sets or {}).items():
        (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets/Main" / f"{name}.txt").write_text("\n".join(stems) + "\n")
    return root


def yolo_lines(boxes: Boxes, names: Sequence[str]) -> str:
    return "".join(
        f"{names.index(name)} {(x0 + x1) / 2 / WIDTH} {(y0 + y1) / 2 / HEIGHT} "
        f"{(x1 - x0) / WIDTH} {(y1 - y0) / HEIGHT}\n"
        for name, (x0, y0, x1, y1) in boxes
    )


def write_yolo(root: Path, splits: Mapping[str, Mapping[str, Boxes]], names: Sequence[str]) -> Path:
    """``SPLIT/images``, ``SPLIT/labels`` and data.yaml, as Roboflow exports them."""
    for split, images in splits.items():
        write_images(root / split / "images", [f"{name}.png" for name in images])
        (root / split / "labels").mkdir()
        for name, boxes in images.items():
            (root / split / "labels" / f"{name}.txt").write_text(yolo_lines(boxes, names))
    lines = [f"{split}: ../{split}/images" for split in splits]
    config = "\n".join([*lines, f"nc: {len(names)}", f"names: {json.dumps(list(names))}"])
    (root / "data.yaml").write_text(config)
    return root


def coco_content(images: Mapping[str, Boxes], names: Mapping[int, str]) -> dict[str, list]:
    """``images`` by file name; ``names`` by category id."""
    ids = {name: i for i, name in names.items()}
    flat = [(i, box) for i, boxes in enumerate(images.values()) for box in boxes]
    return {
        "images": [
            {"id": 7 * i, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for i, name in enumerate(images)
        ],
        "annotations": [
            {
                "id": n,
                "image_id": 7 * i,
                "category_id": ids[name],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
            }
            for n, (i, (name, (x0, y0, x1, y1))) in enumerate(flat)
        ],
        "categories": [{"id": i, "name": name} for i, name in names.items()],
    }


CELLS: dict[str, Boxes] = {
    "a": [("cup", (0, 0, 10, 12)), ("öl 油", (5, 6, 40, 30))],
    "b": [("cup", (3, 4, 20, 22))],
    "c": [],
    "d": [("cup", (1, 2, 8, 9)), ("cup", (20, 10, 38, 28))],
    "e": [("öl 油", (10, 10, 30, 25))],
}
"""Five images, one of them empty, and two classes."""
