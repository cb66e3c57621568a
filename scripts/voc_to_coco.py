"""Pascal VOC annotations to a folder in COCO format: ``python scripts/voc_to_coco.py VOC OUT``.

VOC has ``Annotations/*.xml``, ``JPEGImages`` and ``ImageSets/Main/{train,val}.txt``; OUT gets two
annotation files and links to the images: then ``data=coco data.root=OUT``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from codetr.errors import UserError
from codetr.training.shell import one_line_errors


def main() -> None:
    """Convert both splits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("voc", type=Path, metavar="VOC")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--train", default="train", help="image set of the training split")
    parser.add_argument("--val", default="val", help="image set of the validation split")
    options = parser.parse_args()
    with one_line_errors():
        sets = {
            "train": read_set(options.voc, options.train),
            "val": read_set(options.voc, options.val),
        }
        objects = {name: read_image(options.voc, name) for names in sets.values() for name in names}
        classes = sorted({label for _, found in objects.values() for label, _ in found})
        for split, names in sets.items():
            content = coco({name: objects[name] for name in names}, classes)
            write_split(options.voc, options.out, f"{split}2017", content)
            boxes = len(content["annotations"])
            print(f"{split}: {len(names)} images, {boxes} boxes, classes {', '.join(classes)}")


Objects = list[tuple[str, tuple[float, float, float, float]]]
"""Class names and boxes xmin, ymin, xmax, ymax in pixels."""


def read_set(voc: Path, name: str) -> list[str]:
    """The images of a set, without endings."""
    path = voc / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        raise UserError(f"{path}: no such image set: give --train and --val")
    return path.read_text().split()


def read_image(voc: Path, name: str) -> tuple[dict[str, Any], Objects]:
    """What COCO says of an image, and its objects; boxes without an area are named and left out."""
    path = voc / "Annotations" / f"{name}.xml"
    try:
        root = ElementTree.parse(path).getroot()
        image = {
            "file_name": root.findtext("filename"),
            "width": int(root.findtext("size/width", "")),
            "height": int(root.findtext("size/height", "")),
        }
        objects: Objects = []
        for entry in root.findall("object"):
            x0, y0, x1, y1 = (
                float(entry.findtext(f"bndbox/{side}", ""))
                for side in ("xmin", "ymin", "xmax", "ymax")
            )
            if x1 > x0 and y1 > y0:
                objects.append((entry.findtext("name", ""), (x0, y0, x1, y1)))
            else:
                print(f"{path}: left out a box without an area: {x0:g} {y0:g} {x1:g} {y1:g}")
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path}: not a readable VOC annotation ({error}): mend it") from error
    return image, objects


def coco(images: dict[str, tuple[dict[str, Any], Objects]], classes: list[str]) -> dict[str, Any]:
    """The annotation file's content; ids count from 1."""
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
    }
    for number, (image, objects) in enumerate(images.values(), 1):
        content["images"].append({"id": number, **image})
        for label, (x0, y0, x1, y1) in objects:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": classes.index(label) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    return content


def write_split(voc: Path, out: Path, split: str, content: dict[str, Any]) -> None:
    """The annotation file, and a link to the images."""
    target = out / "annotations" / f"instances_{split}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content))
    link = out / split
    if not link.exists():
        link.symlink_to((voc / "JPEGImages").absolute(), target_is_directory=True)


if __name__ == "__main__":
    main()
