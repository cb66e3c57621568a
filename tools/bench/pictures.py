"""JPEG files in COCO format to measure an input pipeline on: given ones, or generated ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from codetr.data.images import read_geometry
from codetr.data.scenes import SceneStyle, render_scene
from codetr.errors import UserError

ANNOTATIONS = "annotations/instances_train2017.json"
_OBJECTS = 7  # of an image: COCO's mean
_CORNERS = 24  # of an outline
_SIZES = ((480, 640), (640, 480), (427, 640), (480, 640))  # height, width: COCO's most frequent
_STYLE = SceneStyle(objects=(3, 10), sizes=(0.05, 0.8))


@dataclass(frozen=True)
class Pictures:
    """``overrides`` say where a configuration finds them; ``origin`` says it to a reader."""

    overrides: tuple[str, ...]
    origin: str


@contextmanager
def coco_pictures(images: Path | None, count: int, enlarged: int = 1) -> Iterator[Pictures]:
    """A data set of at most ``count`` images, for as long as the context lasts.

    ``images`` is a folder in COCO format, which is taken as it is, or one of JPEG files, for which
    objects are made up; without it scenes are rendered, too, and ``enlarged``. Raises UserError for
    an empty folder.
    """
    with TemporaryDirectory(prefix="codetr-bench-") as made:
        root = Path(made)
        if images is None:
            _render(root / "images", count, enlarged)
            folder, origin = root / "images", f"{count} rendered scenes of COCO's usual sizes"
        elif (images / ANNOTATIONS).is_file():
            yield Pictures(_overrides(images), f"COCO-format folder {images.name}, its own objects")
            return
        else:
            folder, origin = images.resolve(), f"JPEG files of {images.name}"
        files = sorted(p for p in folder.glob("*.*") if p.suffix.lower() in (".jpg", ".jpeg"))
        if not files:
            raise UserError(f"{folder} has no JPEG files: give --images another folder")
        (root / ANNOTATIONS).parent.mkdir()
        (root / ANNOTATIONS).write_text(json.dumps(_annotations(files[:count])))
        overrides = (
            *_overrides(root),
            f"data.source.train_images={folder}",
            f"data.source.val_images={folder}",
            f"data.source.val_annotations={ANNOTATIONS}",
        )
        yield Pictures(overrides, f"{origin}; {_OBJECTS} made-up objects each")


def _overrides(root: Path) -> tuple[str, ...]:
    return ("data=coco", f"data.root={root}")


def _render(folder: Path, count: int, enlarged: int) -> None:
    """JPEG files with edges, textures and noise, about as large as COCO's."""
    folder.mkdir()
    for index in range(count):
        rng = np.random.default_rng(index)
        pixels, _ = render_scene(rng, *_SIZES[index % len(_SIZES)], _STYLE)
        picture = Image.fromarray(pixels)
        size = picture.width * enlarged, picture.height * enlarged
        picture.resize(size, Image.Resampling.BICUBIC).save(folder / f"{index:06d}.jpg", quality=90)


def _annotations(files: list[Path]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, path in enumerate(files):
        height, width = read_geometry(path).size
        images.append({"id": index + 1, "file_name": path.name, "height": height, "width": width})
        rng = np.random.default_rng(index)
        for _ in range(_OBJECTS):
            entry = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": 1}
            annotations.append({**entry, "iscrowd": 0, **_blob(rng, height, width)})
    categories = [{"id": 1, "name": "object"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def _blob(rng: np.random.Generator, height: int, width: int) -> dict[str, Any]:
    """The outline of a random object within the image, and its box."""
    extent = np.exp(rng.uniform(np.log(0.03), np.log(0.45), 2)) * (width, height)
    centre = rng.uniform(extent, (width, height) - extent)
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    radius = rng.uniform(0.5, 1.0, _CORNERS)[:, None]
    outline = centre + extent * radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    low, high = outline.min(axis=0), outline.max(axis=0)
    return {
        "segmentation": [outline.round(2).flatten().tolist()],
        "bbox": [*low.tolist(), *(high - low).tolist()],
        "area": float(np.prod(high - low)),
    }
