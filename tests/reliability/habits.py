"""Folders of data as people have them: drawn scenes, written in each format with odd habits."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

from PIL import ExifTags, Image

XYXY = tuple[float, float, float, float]
SIZES = ((64, 48), (48, 64), (60, 60), (90, 40))
NAMES = ("cup", "Cup", "no", "1.0", "007", "öl 油", "a & b", "2001-01-01", "null", "x: y")
SUFFIXES = (".png", ".PNG", ".jpg", ".JPEG", ".jfif", ".ppm", ".bmp", ".tif", ".webp", ".heic")
SPLITS = ("val", "valid", "validation", "dev", "minival", "eval", "test", "VAL", "more")
ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1")


@dataclass
class Picture:
    """``boxes`` (class, xyxy) in pixels of the upright picture, of ``size`` (width, height);
    ``told``: the size that annotations tell; ``orphaned``: its label file has another name.
    """

    stem: str
    split: str
    suffix: str
    size: tuple[int, int]
    boxes: list[tuple[str, XYXY]]
    orientation: int = 1
    told: tuple[int, int] = (0, 0)
    orphaned: bool = False


@dataclass
class Scene:
    """What is written. ``vague``: what is written may be read in another way than it was meant."""

    pictures: list[Picture]
    names: list[str]
    habits: list[str] = field(default_factory=list)
    vague: bool = False
    encoding: str = "utf-8"

    @property
    def splits(self) -> list[str]:
        return sorted({picture.split for picture in self.pictures})


def scene(draw: random.Random) -> Scene:
    """Four to eight pictures, in train and perhaps in another split."""
    second = draw.choice([*SPLITS, "train"])
    names = draw.sample(NAMES, draw.randrange(1, 4))
    pictures = []
    for i in range(draw.randrange(4, 9)):
        size = draw.choice(SIZES)
        boxes = [_box(draw, names, size) for _ in range(draw.randrange(4))]
        split = second if i % 3 == 2 else "train"
        pictures.append(Picture(f"i{i}", split, ".png", size, boxes, told=size))
    found = Scene(pictures, names)
    for habit in draw.sample(list(OF_PICTURES), draw.randrange(3)):
        found.habits.append(habit)
        OF_PICTURES[habit](draw, found)
    return found


def _box(draw: random.Random, names: list[str], size: tuple[int, int]) -> tuple[str, XYXY]:
    x0, y0 = draw.randrange(size[0] - 9), draw.randrange(size[1] - 9)
    return draw.choice(names), (
        *(float(x0), float(y0)),
        float(draw.randrange(x0 + 8, size[0] + 1)),
        float(draw.randrange(y0 + 8, size[1] + 1)),
    )


def odd_suffixes(draw: random.Random, found: Scene) -> None:
    for picture in found.pictures:
        picture.suffix = draw.choice(SUFFIXES)


def turned_pictures(draw: random.Random, found: Scene) -> None:
    for picture in found.pictures:
        picture.suffix, picture.orientation = ".jpg", draw.choice([1, 3, 6, 8])
        if picture.orientation > 4 and draw.random() < 0.5:
            picture.told = picture.size[::-1]
    found.vague = True


def other_sizes(draw: random.Random, found: Scene) -> None:
    factor = draw.choice([0, 0.5, 2, -1])
    for picture in found.pictures:
        width, height = picture.size
        picture.told = (
            (height, width) if factor == -1 else (int(width * factor), int(height * factor))
        )
    found.vague = True


def odd_names_of_files(draw: random.Random, found: Scene) -> None:
    for picture in found.pictures:
        picture.stem += draw.choice([" é", "é", "%20", ".rf.1", " (1)", "Ä"])


OF_PICTURES: Mapping[str, Callable[[random.Random, Scene], None]] = {
    "odd suffixes": odd_suffixes,
    "turned pictures": turned_pictures,
    "other sizes": other_sizes,
    "odd names of files": odd_names_of_files,
}


def write_picture(folder: Path, picture: Picture) -> None:
    """As a file, on its side where its orientation turns it. HEIC is no picture at all here."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{picture.stem}{picture.suffix}"
    if picture.suffix == ".heic":
        path.write_bytes(b"\0\0\0\x18ftypheic")
        return
    size = picture.size[::-1] if picture.orientation > 4 else picture.size
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = picture.orientation
    turned = {"exif": exif} if picture.orientation > 1 else {}
    Image.new("RGB", size, (picture.size[0], 90, 200)).save(path, **turned)


def encoded(draw: random.Random, found: Scene, text: str) -> bytes:
    """In one of the usual encodings."""
    found.encoding = draw.choice(ENCODINGS)
    found.habits.append(found.encoding)
    return text.encode(found.encoding, "replace" if found.encoding == "latin-1" else "strict")


# COCO


def write_coco(draw: random.Random, found: Scene, root: Path) -> None:
    chosen = draw.sample(list(OF_COCO), draw.randrange(4))
    found.habits += chosen
    numbers = {name: i for i, name in enumerate(found.names, draw.randrange(3))}
    (root / "annotations").mkdir()
    beside = draw.random() < 0.3
    for split in found.splits:
        pictures = [p for p in found.pictures if p.split == split]
        for picture in pictures:
            write_picture(root / split, picture)
        content = coco_content(pictures, numbers)
        for habit in chosen:
            OF_COCO[habit](draw, content)
        found.vague |= bool(MOVING & set(chosen))
        text = json.dumps(content, ensure_ascii=False)
        path = root / f"annotations/instances_{split}.json"
        path = root / split / "_annotations.coco.json" if beside else path
        path.write_bytes(encoded(draw, found, text))


def coco_content(pictures: list[Picture], numbers: Mapping[str, int]) -> dict[str, list[Any]]:
    """Nothing is wrong with it but what the pictures tell."""
    content: dict[str, list[Any]] = {"images": [], "annotations": []}
    content["categories"] = [{"id": i, "name": name} for name, i in numbers.items()]
    for i, picture in enumerate(pictures, 1):
        name = f"{picture.stem}{picture.suffix}"
        width, height = picture.told
        content["images"].append({"id": i, "file_name": name, "width": width, "height": height})
        for label, (x0, y0, x1, y1) in picture.boxes:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "image_id": i,
                    "category_id": numbers[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                }
            )
    return content


Change = Callable[[random.Random, dict[str, list[Any]]], None]


def _of_boxes(change: Callable[[float, float, float, float], list[Any]]) -> Change:
    def apply(draw: random.Random, content: dict[str, list[Any]]) -> None:
        for entry in content["annotations"]:
            entry["bbox"] = change(*map(float, entry["bbox"]))

    return apply


def _shares(draw: random.Random, content: dict[str, list[Any]]) -> None:
    for entry in content["annotations"]:
        entry["bbox"] = [float(v) / draw.choice([48, 64, 90]) for v in entry["bbox"]]


def _of_ids(change: Callable[[random.Random, Any], Any]) -> Change:
    def apply(draw: random.Random, content: dict[str, list[Any]]) -> None:
        new = {entry["id"]: change(draw, entry["id"]) for entry in content["images"]}
        for entry in content["images"]:
            entry["id"] = new[entry["id"]]
        for entry in content["annotations"]:
            entry["image_id"] = new.get(entry["image_id"], entry["image_id"])

    return apply


def _of_each(key: str, name: str, values: Callable[[random.Random, Any], Any]) -> Change:
    """One key of every entry, or of one."""

    def apply(draw: random.Random, content: dict[str, list[Any]]) -> None:
        entries = content[key]
        chosen = entries if draw.random() < 0.5 else entries[:1]
        for entry in chosen:
            entry[name] = values(draw, entry.get(name))

    return apply


def _twice(key: str) -> Change:
    def apply(draw: random.Random, content: dict[str, list[Any]]) -> None:
        if content[key]:
            entry = draw.choice(content[key])
            number = draw.choice([entry.get("id"), str(entry.get("id")), 991])
            content[key].append({**entry, "id": number})

    return apply


OF_COCO: Mapping[str, Change] = {
    "corners": _of_boxes(lambda x, y, w, h: [x, y, x + w, y + h]),
    "centres": _of_boxes(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h]),
    "shares": _shares,
    "boxes as texts": _of_boxes(lambda *box: [f"{v:g}" for v in box]),
    "ids as names": _of_ids(lambda draw, i: f"img{i}"),
    "ids as texts": _of_ids(lambda draw, i: f"00{i}"),
    "ids of many kinds": _of_ids(lambda draw, i: draw.choice([i, f"{i}.0", str(i), f"x{i}"])),
    "image ids elsewhere": _of_each("annotations", "image_id", lambda d, v: d.choice([v, 999, 1])),
    "classes as texts": _of_each("annotations", "category_id", lambda d, v: str(v)),
    "classes by name": _of_each("annotations", "category_id", lambda d, v: "cup"),
    "numbers as names": _of_each("categories", "name", lambda d, v: d.choice([1, 1.0, True, 7])),
    "crowds as texts": _of_each("annotations", "iscrowd", lambda d, v: d.choice(["0", "1", "no"])),
    "paths": _of_each("images", "file_name", lambda d, v: f"C:\\data\\{v}"),
    "addresses": _of_each("images", "file_name", lambda d, v: f"https://x.org/{quote(v)}?a=1"),
    "another suffix": _of_each("images", "file_name", lambda d, v: f"{v.rpartition('.')[0]}.jpeg"),
    "sizes as texts": _of_each("images", "width", lambda d, v: str(v)),
    "images twice": _twice("images"),
    "annotations twice": _twice("annotations"),
    "categories twice": _twice("categories"),
}

MOVING = {"corners", "centres", "shares", "image ids elsewhere"}
"""Those after which boxes are elsewhere."""


# VOC


def write_voc(draw: random.Random, found: Scene, root: Path) -> None:
    form = draw.choice(["as it should be", "x, y, width, height", "turned", "from 0"])
    found.habits.append(form)
    found.vague |= form in ("x, y, width, height", "from 0")
    by_lists = draw.random() < 0.5
    home = root if by_lists else None
    lists: dict[str, list[str]] = {}
    for picture in found.pictures:
        place = home or root / picture.split
        write_picture(place / "JPEGImages", picture)
        (place / "Annotations").mkdir(exist_ok=True)
        path = place / "Annotations" / f"{picture.stem}.xml"
        # without a declaration XML is UTF-8, or what its mark says
        text = voc_text(draw, picture, form)
        path.write_bytes(text.encode(draw.choice(["utf-8", "utf-8-sig", "utf-16"])))
        lists.setdefault(picture.split, []).append(picture.stem)
    if by_lists:
        (root / "ImageSets/Main").mkdir(parents=True)
        for split, stems in lists.items():
            text = "\n".join([*stems, *draw.choice([[], ["gone"], [stems[0]]])])
            (root / f"ImageSets/Main/{split}.txt").write_bytes(encoded(draw, found, text))
    if draw.random() < 0.2:  # a second file of one image
        found.habits.append("a second file")
        picture = found.pictures[0]
        folder = (home or root / picture.split) / "Annotations/old"
        folder.mkdir()
        (folder / f"{picture.stem}.xml").write_text(voc_text(draw, picture, form))


def voc_text(draw: random.Random, picture: Picture, form: str) -> str:
    objects = []
    for name, (x0, y0, x1, y1) in picture.boxes:
        values = {
            "x, y, width, height": (x0, y0, x1 - x0, y1 - y0),
            "turned": (x1, y1, x0 + 1, y0 + 1),
            "from 0": (x0, y0, x1, y1),
        }.get(form, (x0 + 1, y0 + 1, x1, y1))
        tags = zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True)
        corners = "".join(f"<{tag}>{value:g}</{tag}>" for tag, value in tags)
        objects.append(
            f"<object><name>{escape(name)}</name><difficult>{draw.choice(['0', '', 'False'])}"
            f"</difficult><bndbox>{corners}</bndbox></object>"
        )
    width, height = picture.told
    return (
        f"<annotation><filename>{escape(picture.stem + picture.suffix)}</filename><size>"
        f"<width>{width}</width><height>{height}</height></size>{''.join(objects)}</annotation>"
    )


# YOLO


def write_yolo(draw: random.Random, found: Scene, root: Path) -> None:
    form = draw.choice(["as it should be", "from 1", "corners", "pixels", "confidence", "polygon"])
    found.habits.append(form)
    found.vague |= form in ("corners", "pixels", "from 1")
    for picture in found.pictures:
        write_picture(root / picture.split / "images", picture)
        folder = root / picture.split / "labels"
        folder.mkdir(exist_ok=True)
        lines = [yolo_line(found.names.index(n), b, picture.size, form) for n, b in picture.boxes]
        stem = draw.choice([*[picture.stem] * 4, picture.stem.upper(), f"gone {picture.stem}"])
        if lines or draw.random() < 0.5:
            picture.orphaned = stem.startswith("gone")
            (folder / f"{stem}.txt").write_bytes(encoded(draw, found, "\n".join(lines)))
    names: Any = found.names
    if draw.random() < 0.3:
        names = {i + (form == "from 1"): name for i, name in enumerate(names)}
    written = json.dumps(names, ensure_ascii=False)
    if isinstance(names, list) and ": " not in written and draw.random() < 0.5:
        written = "".join(f"\n- {name}" for name in names)  # YAML would make other values of them
    text = f"nc: {draw.choice([len(names), 9])}\nnames: {written}\n"
    if draw.random() < 0.5:
        keys = ("train", "val", "test")
        text += "".join(f"{k}: ../{s}/images\n" for k, s in zip(keys, found.splits, strict=False))
    if draw.random() < 0.7:
        (root / "data.yaml").write_bytes(encoded(draw, found, text))
    else:
        (root / "classes.txt").write_bytes(encoded(draw, found, "\n".join(found.names)))


def yolo_line(number: int, box: XYXY, size: tuple[int, int], form: str) -> str:
    width, height = size
    x0, y0, x1, y1 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    values: tuple[float, ...] = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
    if form == "corners":
        values = (x0, y0, x1, y1)
    elif form == "pixels":
        values = box
    elif form == "confidence":
        values = (*values, 0.5)
    elif form == "polygon":
        values = (x0, y0, x1, y0, x1, y1, x0, y1)
    return " ".join([f"{number + (form == 'from 1')}", *(f"{value:.8g}" for value in values)])


# LabelMe


def write_labelme(draw: random.Random, found: Scene, root: Path) -> None:
    form = draw.choice(["as it should be", "turned", "polygon", "points", "groups"])
    found.habits.append(form)
    found.vague |= form == "groups"
    for picture in found.pictures:
        write_picture(root / picture.split, picture)
        shapes = []
        for name, (x0, y0, x1, y1) in picture.boxes:
            points = [[x1, y1], [x0, y0]] if form == "turned" else [[x0, y0], [x1, y1]]
            kind = "rectangle"
            if form == "polygon":
                kind, points = "polygon", [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
            elif form == "points" and draw.random() < 0.5:
                kind, points = "point", [[x0, y0]]
            shape: dict[str, Any] = {"label": name, "points": points, "shape_type": kind}
            if form == "groups":
                shape["group_id"] = draw.choice([None, 1, "1"])
            shapes.append(shape)
        width, height = picture.told
        told = draw.choice(["", "..\\images\\", "/home/them/"])
        content = {
            "shapes": shapes,
            "imagePath": f"{told}{picture.stem}{picture.suffix}",
            "imageWidth": width,
            "imageHeight": height,
        }
        text = json.dumps(content, ensure_ascii=False)
        path = root / picture.split / f"{picture.stem}.json"
        path.write_bytes(encoded(draw, found, text))


WRITERS: Mapping[str, Callable[[random.Random, Scene, Path], None]] = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "labelme": write_labelme,
}
