"""Made-up boxes and detections, as many and as alike as those of a detector on COCO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codetr.structures import Detections

_SIZE = (480, 640)
_OBJECTS = 7.3  # of an image: COCO's mean
_CROWD = 0.012  # share of crowd regions
_NEAR = 4  # detections around an object
_SIDES = (8.0, 400.0)  # pixels, log-uniform
_CLASSES_SEEN = 12  # that the detections of an image name: those of its objects, and mix-ups


@dataclass(frozen=True)
class Scene:
    """``truth`` is the content of a COCO annotation file; ``found`` the detections by image id, of
    images of ``size`` (height, width).
    """

    truth: dict[str, Any]
    found: dict[int, Detections]
    size: tuple[int, int] = _SIZE


def make_scene(images: int, detections: int, classes: int, seed: int = 0) -> Scene:
    """Each object is found several times, more or less well; the other detections are of low
    score and anywhere.
    """
    truth: list[dict[str, Any]] = []
    found = {}
    for image in range(1, images + 1):
        rng = np.random.default_rng((seed, image))
        labels = _frequent_first(rng, 1 + rng.poisson(_OBJECTS - 1), classes)
        boxes = _boxes(rng, len(labels))
        truth += [
            _annotation(rng, len(truth) + 1 + i, image, label, box)
            for i, (label, box) in enumerate(zip(labels.tolist(), boxes, strict=True))
        ]
        found[image] = _detections(rng, labels, boxes, detections, classes)
    return Scene(
        truth={
            "images": [{"id": i, "height": _SIZE[0], "width": _SIZE[1]} for i in found],
            "annotations": truth,
            "categories": [{"id": c + 1, "name": str(c + 1)} for c in range(classes)],
        },
        found=found,
    )


def _frequent_first(rng: np.random.Generator, count: int, classes: int) -> NDArray[np.int64]:
    """Classes by Zipf's law."""
    share = 1 / np.arange(1, classes + 1)
    return rng.choice(classes, count, p=share / share.sum())


def _boxes(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """xyxy pixels within the image."""
    least, most = np.log(_SIDES)
    sides = np.exp(rng.uniform(least, most, (count, 2)))
    low = rng.uniform(0, 1, (count, 2)) * (np.array([_SIZE[1], _SIZE[0]]) - sides)
    return np.concatenate([low, low + sides], axis=1)


def _annotation(
    rng: np.random.Generator, number: int, image: int, label: int, box: NDArray[np.float64]
) -> dict[str, Any]:
    sides = box[2:] - box[:2]
    return {
        "id": number,
        "image_id": image,
        "category_id": label + 1,
        "bbox": [*box[:2].tolist(), *sides.tolist()],
        "area": float(sides.prod() * rng.uniform(0.4, 1.0)),
        "iscrowd": int(rng.random() < _CROWD),
    }


def _detections(
    rng: np.random.Generator,
    labels: NDArray[np.int64],
    boxes: NDArray[np.float64],
    count: int,
    classes: int,
) -> Detections:
    near = np.repeat(np.arange(len(labels)), _NEAR)[:count]
    sides = np.tile(boxes[near, 2:] - boxes[near, :2], 2)
    around = boxes[near] + sides * rng.normal(0, 0.08, (len(near), 4))
    rest = count - len(near)
    seen = np.concatenate([labels, _frequent_first(rng, _CLASSES_SEEN, classes)])
    found = np.concatenate([around, _boxes(rng, rest)])
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    scores = np.concatenate([rng.beta(2, 2, len(near)), rng.beta(1, 12, rest)])
    order = scores.argsort()[::-1]
    return Detections(
        boxes_xyxy_px=torch.from_numpy(found[order]).float(),
        scores=torch.from_numpy(scores[order]).float(),
        labels=torch.from_numpy(np.concatenate([labels[near], rng.choice(seen, rest)])[order]),
    )
