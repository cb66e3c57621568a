"""Random ground truth and detections in COCO format, with the awkward cases in it."""

import json
from pathlib import Path

import numpy as np
import torch

from codetr.classes import ClassList
from codetr.structures import Detections, ImageInfo

CLASSES = ClassList(names=("a", "b", "c", "never seen"), category_ids=(7, 0, 90, 12))


def write_annotations(path: Path, num_images: int, seed: int = 0) -> None:
    """Small to large boxes, crowd regions, images without boxes, ids with holes."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(num_images):
        for _ in range(0 if image % 5 == 0 else int(rng.integers(1, 12))):
            w, h = rng.choice([12, 50, 200]) * rng.uniform(0.5, 1.5, 2)
            x, y = rng.uniform(0, 400, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id(image),
                    "category_id": int(rng.choice(CLASSES.category_ids[:3])),
                    "bbox": [float(v) for v in (x, y, w, h)],
                    "area": float(w * h * rng.uniform(0.3, 1)) if rng.random() > 0.05 else 0.0,
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
    content = {
        "images": [{"id": image_id(i)} for i in range(num_images)],
        "annotations": annotations,
        "categories": [
            {"id": c, "name": n} for n, c in zip(CLASSES.names, CLASSES.category_ids, strict=True)
        ],
    }
    path.write_text(json.dumps(content))


def image_id(index: int) -> int:
    """Ids that are neither sorted nor without holes."""
    return (index * 37) % 1009 + 3


def info(image: int) -> ImageInfo:
    return ImageInfo(image_id=image, original_size=(600, 600), scale=(1.0, 1.0))


def detections(path: Path, seed: int = 1) -> dict[int, Detections]:
    """By image id: jittered true boxes, some with a wrong class, and false alarms; tied scores;
    more than 100 in a class of an image; none at all in every seventh image.
    """
    rng = np.random.default_rng(seed)
    content = json.loads(path.read_text())
    index = CLASSES.index()
    found = {}
    for position, image in enumerate(content["images"]):
        rows = []
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                for _ in range(int(rng.integers(0, 4))):
                    x, y, w, h = annotation["bbox"]
                    jitter = rng.normal(0, 0.06, 4) * [w, h, w, h]
                    box = np.array([x, y, x + w, y + h]) + jitter
                    right = rng.random() < 0.8
                    label = index[annotation["category_id"]] if right else rng.integers(3)
                    rows.append([*box, rng.random(), label])
        for _ in range(150 if position == 3 else int(rng.integers(0, 8))):
            x, y, w, h = rng.uniform(0, 300, 4)
            rows.append([x, y, x + w, y + h, rng.random(), 0 if position == 3 else rng.integers(3)])
        if position % 7 == 0:
            rows = []
        table = torch.tensor(np.array(rows), dtype=torch.float64).reshape(-1, 6)
        found[image["id"]] = Detections(
            boxes_xyxy_px=table[:, :4].float(),
            scores=(table[:, 4] * 50).round().float() / 50,  # many ties
            labels=table[:, 5].long(),
        )
    return found
