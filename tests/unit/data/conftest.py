"""Small COCO-format folders, written per test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Content = dict[str, Any]


def _content(num_images: int) -> Content:
    """Images of 40 x 30 and 30 x 40 pixels; category ids with holes, given in disorder."""
    sizes = [(40, 30), (30, 40)]
    images = [
        {
            "id": 10 * i + 5,
            "file_name": f"{i}.png",
            "width": sizes[i % 2][0],
            "height": sizes[i % 2][1],
        }
        for i in range(num_images)
    ]
    annotations = [
        {
            "id": 100 + i,
            "image_id": image["id"],
            "category_id": (7, 0, 3)[i % 3],
            "bbox": [2, 3, 10 + i % 5, 12],
            "area": 12 * (10 + i % 5),
            "iscrowd": 0,
        }
        for i, image in enumerate(images)
    ]
    categories = [{"id": 7, "name": "cup"}, {"id": 0, "name": "ant"}, {"id": 3, "name": "bat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_split(root: Path, name: str, content: Content) -> None:
    """Annotation file and image folder of one split."""
    (root / name).mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(content["images"]):
        pixels = np.full((image["height"], image["width"], 3), i % 256, np.uint8)
        Image.fromarray(pixels).save(root / name / image["file_name"])
    (root / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def content() -> Content:
    return _content(3)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Content], Path]:
    """Write an annotation file only; its path."""

    def write(content: Content) -> Path:
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def make_root(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder with splits of the given contents, or of so many images."""

    def make(train: Content | int = 6, val: Content | int = 5) -> Path:
        for name, given in (("train", train), ("val", val)):
            write_split(tmp_path, name, _content(given) if isinstance(given, int) else given)
        return tmp_path

    return make
