"""The built-in benchmark: a COCO-format folder of scenes, rendered once."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from PIL import Image
from rich.progress import Progress

from codetr.data.placement import AUTO
from codetr.data.scenes import SceneObject, SceneStyle, render_scene
from codetr.data.shapes import SHAPES
from codetr.data.sources import Split, Splits
from codetr.errors import UserError
from codetr.writing import new_folder

log = logging.getLogger(__name__)

_VERSION = 7  # increment when scenes change, so that earlier ones are not reused
_SHAPES_OF_IMAGE = ((1.0, 1.0), (1.0, 1.25), (1.25, 1.0))  # height, width over the short side
_SPLIT_SEEDS = {"train": 0, "val": 1}


@dataclass(frozen=True, kw_only=True)
class SyntheticScenes:
    """Renders ``num_train`` and ``num_val`` scenes with different seeds as a COCO-format folder.

    ``size`` is the short side in pixels; the long side is 1 or 1.25 times that. The same parameters
    give the same bytes. The folder's name contains a hash of them; it is rendered to a temporary
    folder and renamed at the end, so that it is always complete.
    """

    size: int = 112
    num_train: int = 2000
    num_val: int = 200
    seed: int = 0
    style: SceneStyle = field(default_factory=SceneStyle)

    def __post_init__(self) -> None:
        if self.size < 32 or self.num_train < 1 or self.num_val < 1 or self.seed < 0:
            raise UserError(
                f"data.source: size={self.size} num_train={self.num_train} "
                f"num_val={self.num_val} seed={self.seed}: give a size of at least 32 pixels, at "
                "least one image per split and a seed of at least 0"
            )

    def folder(self, root: Path) -> Path:
        """The folder of these scenes below ``root``."""
        parameters = json.dumps({"version": _VERSION, **asdict(self)}, sort_keys=True, default=list)
        return root / f"synthetic-{hashlib.sha256(parameters.encode()).hexdigest()[:12]}"

    def __call__(self, root: Path, boxes: str = AUTO) -> Splits:
        """The two splits, rendered with a progress bar if they do not exist. ``boxes`` is ignored,
        since sizes agree.
        """
        folder = self.folder(root)
        if not folder.is_dir():
            self._render(folder)
        return Splits(train=_split(folder, "train"), val=_split(folder, "val"), placed=True)

    def _render(self, folder: Path) -> None:
        with new_folder(folder) as unfinished, Progress(transient=True) as progress:
            for name, count in (("train", self.num_train), ("val", self.num_val)):
                task = progress.add_task(f"rendering {name} scenes", total=count)
                entries = []
                (unfinished / name).mkdir()
                for index in range(count):
                    entries.append(self._scene(unfinished, name, index))
                    progress.advance(task)
                _write_annotations(_split(unfinished, name).annotations, entries)
        log.info("built-in data: %s", folder)

    def _scene(
        self, folder: Path, split: str, index: int
    ) -> tuple[dict[str, Any], list[SceneObject]]:
        """Render one scene to a file and return its image entry and its objects."""
        rng = np.random.default_rng((self.seed, _SPLIT_SEEDS[split], index))
        shape = _SHAPES_OF_IMAGE[rng.integers(len(_SHAPES_OF_IMAGE))]
        height, width = (round(self.size * side) for side in shape)
        pixels, objects = render_scene(rng, height, width, self.style)
        name = f"{index:06d}.jpg"
        Image.fromarray(pixels).save(folder / split / name, quality=92, subsampling=0)
        image = {"id": index + 1, "file_name": name, "height": height, "width": width}
        return image, objects


def _split(folder: Path, name: str) -> Split:
    return Split(annotations=folder / f"{name}.json", images=folder / name)


def _write_annotations(path: Path, scenes: list[tuple[dict[str, Any], list[SceneObject]]]) -> None:
    annotations = [_annotation(item, image["id"]) for image, objects in scenes for item in objects]
    content = {
        "info": {"description": "codetr built-in scenes", "version": str(_VERSION)},
        "images": [image for image, _ in scenes],
        "annotations": [{"id": i + 1, **a} for i, a in enumerate(annotations)],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(SHAPES)],
    }
    path.write_text(json.dumps(content))


def _annotation(item: SceneObject, image_id: int) -> dict[str, Any]:
    x0, y0, x1, y1 = item.box
    return {
        "image_id": image_id,
        "category_id": item.label + 1,
        "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
        "area": round(item.area, 2),
        "iscrowd": 0,
        "segmentation": {
            "size": list(item.mask.shape),
            "counts": rle.encode(np.asfortranarray(item.mask))["counts"].decode("ascii"),
        },
    }
